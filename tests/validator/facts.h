// What a recording tells, whoever of its parties saw it: the events by number, the children with
// their own accounts, the streams that observers were shown, the sends and forks that were asked
// for. It judges nothing; where parties contradict each other it keeps the first or the longest
// copy.
#ifndef TESTS_VALIDATOR_FACTS_H_
#define TESTS_VALIDATOR_FACTS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "deka/bridge/v1/agent_config.pb.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/validator/record.h"

namespace deka::validator {

namespace v1 = ::deka::bridge::v1;

// Payload and its whole size as the event tells it.
std::string_view PayloadOf(const v1::Event& event);
int64_t WholePayloadBytes(const v1::Event& event);

// The bit of an event in KindBits(). Messages have one for each direction.
uint32_t KindBit(const v1::Event& event);
// Those of the events that an observation shows, as far as kind and direction decide.
uint32_t KindBits(const v1::Observation& observation);

// The reason that an error gives, else "".
std::string ReasonOf(const google::rpc::Status& status);

struct EventFact {
  const v1::Event* event = nullptr;  // the copy with the longest payload; null: nobody was shown it
  size_t record = 0;
  int child = -1;  // its place in Facts::children
  uint32_t kind_bit = 0;
  // An observation that began after this moment was shown it as past: it was in its log then.
  int64_t in_log_at = -1;
};

struct ChildFacts {
  std::string id = {};
  bool described = false;  // the next three are known
  std::string display_name = {};
  std::map<std::string, std::string> labels = {};
  v1::ChildLimits limits = {};
  std::vector<int64_t> sequences{0};  // by child_sequence; 0: not known
  int64_t newest_sequence = 0;        // of all that are its own, shown or only named
  // Sequences of these events; 0: not known.
  int64_t started = 0, disconnected = 0, exited = 0, closed = 0;
  std::vector<size_t> account = {};  // its records

  // Known from the first to the last.
  bool complete() const { return closed != 0 && unknown == 0; }
  int64_t unknown = 0;  // of its child_sequences, below the largest that is known
};

// What one observer was shown in one call of Observe or Attach.
struct Stream {
  struct Piece {
    size_t record;
    const v1::ObserveResponse* response;
  };
  std::string party = {};
  v1::ObserveRequest request = {};
  size_t asked = 0;  // record
  int64_t asked_at = 0;
  std::vector<Piece> pieces = {};
  const v1::Attached* attached = nullptr;
  int64_t attached_at = 0;
  // Unset: the party gave it up, or the recording ends before.
  const google::rpc::Status* status = nullptr;
  size_t last = 0;  // its last record
  int64_t last_at = 0;
};

// A message that somebody asked to send: a call of SendMessage, or a request of an Attach.
struct Send {
  enum class Outcome { kUnknown, kWritten, kAccepted, kRefused };
  int child = -1;
  std::string json = {};  // line breaks as the spaces that they are sent as
  std::string request_id = {};
  bool repeat = false;
  std::string client = {};
  int64_t attach = 0;  // its call, if it is of an Attach
  size_t asked = 0, answered = 0;
  int64_t asked_at = 0, answered_at = 0;
  Outcome outcome = Outcome::kUnknown;
  int64_t sequence = 0;     // with kWritten, of a SendMessage
  std::string reason = {};  // with kRefused, or with kUnknown if the agent said so
};

struct Fork {
  v1::ForkChildRequest request = {};
  const v1::ForkChildResponse* response = nullptr;
  bool refused = false;
  size_t asked = 0, answered = 0;
  int64_t asked_at = 0;
};

struct Signal {
  int child = -1;
  int number = 0;
  std::string client = {};
  size_t asked = 0, answered = 0;
  int64_t asked_at = 0;
  int64_t sequence = 0;  // 0: there was no answer
};

class Facts {
 public:
  // `recording` outlives it and what it gives.
  explicit Facts(const Recording& recording);

  const Recording& recording() const { return recording_; }
  const v1::AgentLimits& limits() const { return limits_; }
  bool stopping() const { return stopping_; }

  // By sequence; [0] is nobody's.
  const std::vector<EventFact>& events() const { return events_; }
  int64_t head() const { return static_cast<int64_t>(events_.size()) - 1; }
  const std::vector<ChildFacts>& children() const { return children_; }
  const std::vector<Stream>& streams() const { return streams_; }  // in the order they began
  const std::vector<Send>& sends() const { return sends_; }
  const std::vector<Fork>& forks() const { return forks_; }
  const std::vector<Signal>& signals() const { return signals_; }

  // By resource name, id, or display name; -1 if there is none.
  int ChildNamed(std::string_view name) const;
  const v1::Event* EventAt(int64_t sequence) const {
    return sequence > 0 && sequence <= head() ? events_[static_cast<size_t>(sequence)].event
                                              : nullptr;
  }
  // The largest sequence that a party had been told of before this moment.
  int64_t KnownBefore(int64_t moment) const;

 private:
  void TakeCall(const std::vector<size_t>& records);
  void TakeStream(const std::vector<size_t>& records);
  void TakeSend(const std::vector<size_t>& records);
  static void TakeRefusal(const google::rpc::Status& status, Send& send);
  void TakeAttach(const std::vector<size_t>& records);
  void TakePiece(Stream& stream, size_t record, const v1::ObserveResponse& response);
  void TakeEvent(const Stream& stream, size_t record, const v1::Event& event);
  void TakeDescription(const v1::Child& child);
  int ChildOf(std::string_view id);  // a new one if need be
  void Know(int64_t moment, int64_t sequence) { known_.emplace_back(moment, sequence); }
  void Finish();

  const Recording& recording_;
  v1::AgentLimits limits_;
  bool stopping_ = false;
  std::vector<EventFact> events_{1};
  std::vector<ChildFacts> children_;
  std::unordered_map<std::string, int> by_id_;
  std::unordered_map<std::string, int> by_display_name_;
  std::vector<Stream> streams_;
  std::vector<Send> sends_;
  std::vector<Fork> forks_;
  std::vector<Signal> signals_;
  std::vector<std::pair<int64_t, int64_t>> known_;  // moment, and the largest sequence up to it
};

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_FACTS_H_
