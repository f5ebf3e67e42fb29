// What the parties of a history did and saw, each in its own order: requests, answers and ends of
// calls as a client sees them, and what children tell of themselves. It is all that the validator
// reads. A recording is kept as a text of lines, so that one that failed can be looked at, cut down
// and checked again:
//
//   MOMENT PARTY CALL WHAT [TYPE JSON]
//
//   17 observer-2 4 asked ObserveRequest {"parent":"agents/-"}
//   21 observer-2 4 answered ObserveResponse {"attached":{"agent":"history","head":"7"}}
//   0 K3jd8 0 wrote Event {"fromChild":{"sizeBytes":"7"},"json":"{\"n\":1}"}
//
// The body is a message of the API (or google.rpc.Status), in protobuf's own JSON.
#ifndef TESTS_VALIDATOR_RECORD_H_
#define TESTS_VALIDATOR_RECORD_H_

#include <google/protobuf/message.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace deka::validator {

enum class What {
  // Of the agent.
  kLimits,    // AgentLimits: what it was started with
  kStopping,  // it is told to stop

  // Of a call.
  kAsked,      // a request; several on a stream
  kAnswered,   // a response
  kEnded,      // Status
  kCancelled,  // the party gives it up: no end follows
  kPaused,     // the party reads nothing until something has happened that needs nobody to wait
  kResumed,    // that has happened
  kGaveUp,     // that has not happened, though there was time

  // Of a child, by its own account.
  kWrote,           // Event from_child, error or output: all of it is surely in channel or pipe
  kMayHaveWritten,  // the same, but it ended while it wrote this: all, a part or nothing
  kRead,            // Event to_child
  kReadEnd,         // Event disconnected: it read the end. `raw`: what stood behind the last line
  kGotSignal,       // Signalled
  kForked,          // from here on it is a process that it has forked who acts
  kEnds,            // ExitStatus: the process ends itself so
};

// `moment` counts the records of all parties that are no children: what has the smaller one was
// over before the other began. A request is recorded before it is sent, an answer when it has come.
// A child's records have moment 0.
struct Record {
  int64_t moment = 0;
  std::string party = {};  // a child's is its id
  int64_t call = 0;        // of the recording, from 1; 0: of none
  What what = What::kLimits;
  std::shared_ptr<const google::protobuf::Message> body = nullptr;

  // The body if it is an M, else null.
  template <typename M>
  const M* As() const {
    return body != nullptr && body->GetDescriptor() == M::descriptor()
               ? static_cast<const M*>(body.get())
               : nullptr;
  }
};

using Recording = std::vector<Record>;

// One line, without its break.
std::string ToText(const Record& record);
// INVALID_ARGUMENT says what is wrong with the line.
absl::StatusOr<Record> ParseRecord(std::string_view line);

// Errors name the file, and the line that is wrong. Lines that begin with `#` are comments.
absl::Status Save(const Recording& recording, std::string_view comment, const std::string& path);
absl::StatusOr<Recording> Load(const std::string& path);

// What all parties of one history count in.
struct Clock {
  std::atomic<int64_t> moments{0};
  std::atomic<int64_t> calls{0};
};

// One party's hand. Thread: one at a time.
class Recorder {
 public:
  Recorder(Clock& clock, std::string party) : clock_(clock), party_(std::move(party)) {}

  int64_t NewCall() { return ++clock_.calls; }

  void Add(int64_t call, What what) { Put(call, what, nullptr); }
  template <typename M>
  void Add(int64_t call, What what, M body) {
    Put(call, what, std::make_shared<const M>(std::move(body)));
  }
  void Add(int64_t call, What what, std::shared_ptr<const google::protobuf::Message> body) {
    Put(call, what, std::move(body));
  }

  const std::string& party() const { return party_; }
  Recording& records() { return records_; }

 private:
  void Put(int64_t call, What what, std::shared_ptr<const google::protobuf::Message> body) {
    records_.push_back({++clock_.moments, party_, call, what, std::move(body)});
  }

  Clock& clock_;
  const std::string party_;
  Recording records_;
};

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_RECORD_H_
