// What a storm's witness was shown, checked as it comes, and what the other parties say, checked
// against it at the end.
//
// The witness observes all children from the first event on. Nothing may be missing of what it is
// shown but what gaps name, and it is whole if nothing was lost, doubled, reordered or changed.
//
// Thread: any.
#ifndef TESTS_SURVIVAL_LEDGER_H_
#define TESTS_SURVIVAL_LEDGER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "deka/bridge/v1/event.pb.h"
#include "ipc/mutex.h"
#include "tests/survival/account.h"

namespace deka::storm {

namespace v1 = ::deka::bridge::v1;
using Clock = std::chrono::steady_clock;

// Nothing takes as long, unless it is lost.
inline constexpr std::chrono::seconds kHangs{60};

// The promises that were broken, with the time and the kill after which it was noticed.
class Verdict {
 public:
  static constexpr size_t kShownMax = 30;

  void Kill(std::string text);
  void Violation(const std::string& text);
  size_t violations() const;
  double SecondsSinceStart() const;

 private:
  const Clock::time_point start_ = Clock::now();
  mutable ipc::Mutex mutex_;
  size_t violations_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string kill_ ABSL_GUARDED_BY(mutex_) = "before the first kill";
  Clock::time_point kill_time_ ABSL_GUARDED_BY(mutex_) = start_;
};

// The account of a child.
class MappedAccount {
 public:
  explicit MappedAccount(const std::string& path);
  ~MappedAccount();
  MappedAccount(const MappedAccount&) = delete;
  MappedAccount& operator=(const MappedAccount&) = delete;

  // Null: there is none.
  Account* get() const { return account_; }

 private:
  Account* account_ = nullptr;
};

// How a child is to end.
enum class End { kExits, kKilled, kDisconnected };

struct ChildPlan {
  std::string key;    // the label `storm` of the child, and of its fork
  std::string group;  // the label `group`
  std::string role;
  uint64_t seed = 0;
  int code = 0;
  uint64_t count = 0;
  uint64_t ahead = 0;
  End end = End::kExits;
  bool node = false;  // the dialect
  std::string account = {};
};

// What became of a send.
enum class Outcome { kWritten, kAccepted, kUnknown, kNotSent };

struct SendRecord {
  std::string child;  // the key
  std::string request_id = {};
  uint64_t body = 0;  // HashOf()
  Outcome outcome = Outcome::kUnknown;
  int64_t sequence = 0;  // with kWritten; 0: not told
};

// An event as an observer was shown it.
struct Shown {
  int64_t sequence = 0;
  uint64_t hash = 0;  // of all its bytes
};

// One that the witness was shown.
struct Seen {
  uint64_t hash = 0;  // 0: it was not
  const ChildPlan* child = nullptr;
  int64_t child_sequence = 0;
  v1::EventKind kind = v1::EVENT_KIND_UNSPECIFIED;
  v1::Direction direction = v1::DIRECTION_UNSPECIFIED;
  bool even = false;
};

struct Figures {
  int64_t events = 0, from_child = 0, to_child = 0, lines = 0, gaps = 0, missed = 0;
  int64_t children = 0;
};

uint64_t HashOf(const v1::Event& event);

class Ledger {
 public:
  // With `gaps`, logs are small, and gaps are as they should be if they are exact.
  Ledger(Verdict& verdict, bool gaps) : verdict_(verdict), gaps_(gaps) {}

  // Before it is forked. Lives as long as the ledger.
  const ChildPlan& Plan(ChildPlan plan);

  // The witness.
  void Saw(const v1::Event& event);
  void Missed(const v1::Gap& gap);

  int64_t last() const;
  // Waits for these: false if it is too long.
  bool AwaitClosed(const std::string& key) const;
  bool AwaitAnything(std::chrono::milliseconds limit) const;
  // The key of a child by its id; empty if it has not started.
  std::string KeyOf(const std::string& id) const;

  void Sent(SendRecord record);
  // A fork was answered with this child.
  void Forked(const std::string& key, const std::string& name);

  // What another observer was shown, of the events that fit, from the first to the end; its gaps.
  void CheckObserver(const std::string& name, const std::vector<Shown>& shown,
                     const std::vector<v1::Gap>& gaps,
                     const std::function<bool(const Seen&)>& fits) const;
  // What stands in the log is what was shown.
  void CheckAgain(const std::string& name, const std::vector<Shown>& shown) const;

  // All children have closed, and everybody is done.
  void CheckAll() const;
  Figures figures() const;
  // Where all children stand, for one who looks for what hangs.
  std::string ToText() const;

 private:
  struct Book {
    const ChildPlan* plan = nullptr;
    std::shared_ptr<MappedAccount> account;
    std::string id;
    int64_t child_sequence = 0;
    uint64_t messages = 0;
    uint64_t lines[2] = {};
    std::string piece[2];  // of a line that is not whole yet
    bool piece_missed[2] = {};
    std::vector<uint64_t> echoes;  // what it has answered
    struct ToChild {
      int64_t sequence;
      uint64_t body;
      std::string request_id;
    };
    std::vector<ToChild> sends;
    std::vector<std::string> undelivered;  // their request ids
    int64_t missed = 0;
    bool disconnected = false, exited = false, closed = false;
    int signalled = 0;
    int truncated = 0;
  };

  void Begin(Book& book, const ChildPlan& plan, const std::string& id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A child whose `started` is missed: waits until its fork is answered.
  void KnowForked(const std::string& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Saw(Book& book, const v1::Event& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SawMessage(Book& book, const v1::Event& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SawOutput(Book& book, const v1::Event& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SawExit(const Book& book, const v1::Event& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Check(const Book& book) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CheckSends(const Book& book, const Account& account) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Verdict& verdict_;
  const bool gaps_;
  mutable ipc::Mutex mutex_;
  mutable ipc::CondVar changed_;
  std::map<std::string, ChildPlan> plans_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Book> books_ ABSL_GUARDED_BY(mutex_);       // by id
  std::map<std::string, std::string> ids_ ABSL_GUARDED_BY(mutex_);  // by key
  std::vector<Seen> seen_ ABSL_GUARDED_BY(mutex_){1};               // by sequence
  int64_t time_us_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<SendRecord> sends_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> forks_ ABSL_GUARDED_BY(mutex_);  // names by key
  Figures figures_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace deka::storm

#endif  // TESTS_SURVIVAL_LEDGER_H_
