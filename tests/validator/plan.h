// What the parties of one history do, drawn from its seed. When they come to do it, against each
// other, is up to the machine.
#ifndef TESTS_VALIDATOR_PLAN_H_
#define TESTS_VALIDATOR_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "deka/bridge/v1/agent_config.pb.h"
#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka::validator {

namespace v1 = ::deka::bridge::v1;

class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}

  // From 0 to limit - 1.
  int Below(int limit) { return static_cast<int>(engine_() % static_cast<uint64_t>(limit)); }
  int Between(int least, int most) { return least + Below(most - least + 1); }
  bool OneIn(int count) { return Below(count) == 0; }
  template <typename T>
  T Of(std::initializer_list<T> values) {
    return values.begin()[Below(static_cast<int>(values.size()))];
  }
  uint64_t Seed() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

struct ChildPlan {
  enum class Role { kServer, kFlood, kDeaf, kHolder, kMute };
  // How it ends, once the senders are done.
  enum class End {
    kFlush,
    kNow,
    kTerminate,
    kKill,
    kWake,     // a signal makes it read, then kFlush
    kRelease,  // after `exited`, a message to who still holds its channel, then kFlush
    kStop,     // by the agent's own end
  };
  Role role = Role::kServer;
  v1::ChildSpec spec = {};  // without program and arguments
  uint64_t seed = 0;
  std::vector<std::string> steps = {};
  bool late = false;  // a sender forks it
  End end = End::kFlush;
};

struct Step {
  enum class Kind {
    kSend,
    kRepeat,   // of one of its own sends
    kShared,   // a send that others do, too, with the same id and body
    kUnknown,  // a repeat of what never was
    kBad,      // what must be refused
    kFill,     // so much that the child's queue overflows
    kAttach,
    kSignal,
    kFork,
    kDisconnect,
  };
  Kind kind = Kind::kSend;
  int child = 0;
  int bytes = 0;
  bool accepted = false;  // answered when it is in the queue
  bool with_id = false;
  int number = 0;       // of kRepeat, how many before; of kShared, which; of kBad, what is wrong
  int deadline_ms = 0;  // 0: none
  int cancel_us = -1;   // after so long; -1: never
  // Of kAttach.
  int count = 0;
  bool observes = false;
  bool breaks_off = false;
  bool stop_on_failure = false;
  int signal_at = -1;
  v1::DisconnectMode mode = v1::DISCONNECT_MODE_FLUSH;
};

struct ObservationPlan {
  enum class Start {
    kLatest,
    kEarliest,
    kLast,
    kSince,      // the time of the newest event that it has been shown
    kBeginning,  // after nothing
    kContinue,   // where it stands
    kOlder,      // half as far
    kOtherEpoch,
  };
  Start start = Start::kContinue;
  std::vector<int> children = {};    // named ones; empty: all
  v1::ChildFilter filter = {};       // without names
  v1::Observation observation = {};  // of its start only how many with kLast
  int break_off_after = -1;          // events; -1: never
  int pause_after = -1;              // responses; -1: never
  bool pause_to_the_end = false;     // until the children have ended, else until some events later
};

struct SenderPlan {
  std::vector<Step> steps;
};

struct ObserverPlan {
  bool small_window = false;  // takes little ahead of what it reads
  std::vector<ObservationPlan> observations;
};

struct Plan {
  v1::AgentConfig config;
  std::vector<ChildPlan> children;
  std::vector<SenderPlan> senders;
  std::vector<ObserverPlan> observers;
  int64_t events_min = 0;  // that there are in the end, at least
  bool lingers = false;    // until heartbeats have come: a second and more
};

enum class Size { kFull, kSmall };

Plan MakePlan(uint64_t seed, Size size);

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_PLAN_H_
