// One observer's place in the logs: what it is shown, in the API's own encoded responses.
//
//   EventLog (a ring for each child) -> Observation: cursor, filter, end -> TakeNext(): one
//   Response
//
// It pulls: the log never queues for it, only wakes it. Its memory grows with the number of
// children observed, not with how far it lags. In order it gives `attached`, `snapshot` pieces,
// `snapshot_complete`, then batches and gaps, and `fin`.
//
// Thread: one at a time, any; OnReady's callback comes from the loop's thread or from inside
// OnReady.
#ifndef AGENT_OBSERVATION_H_
#define AGENT_OBSERVATION_H_

#include <chrono>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "agent/response.h"
#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka::agent {

class Observation {
 public:
  // A batch holds what is there, at most this much, or one larger event alone.
  static constexpr size_t kBatchBytesMax = 256 << 10;

  enum class Next {
    kResponse,  // `response` is one encoded ObserveResponse
    kBusy,      // nothing yet, and enough work for one call: to be called again, after others
    kWait,      // nothing now: OnReady will tell
    kEnd,       // the stream is complete: status() tells how
  };

  virtual ~Observation() = default;  // forgets a callback that waits; none comes afterwards

  // Fills `response` (its capacity is reused) with the next piece.
  virtual Next TakeNext(Response& response) = 0;

  // After kEnd: OK if `fin` was given, else the error that ended it: kCursorExpired (with
  // `fail_on_gap`) or kTooSlow (with SLOW_POLICY_DISCONNECT).
  virtual absl::Status status() const = 0;

  // Calls `ready` once when TakeNext has something, at once if it has now. It may come without
  // cause: TakeNext answers kWait then.
  virtual void OnReady(absl::AnyInvocable<void()> ready) = 0;

  // Encodes a heartbeat: for the server's timer, when nothing was shown for heartbeat_interval().
  virtual void TakeHeartbeat(Response& response) = 0;
  virtual std::chrono::milliseconds heartbeat_interval() const = 0;

  // When TakeNext has something though nothing happens: the end by `duration`, a gap of what a rate
  // left out. time_point::max(): never.
  virtual std::chrono::steady_clock::time_point time() const = 0;

  // Ends it with this reason: what is shown already stands, the next piece is `fin`. With
  // AGENT_STOPPING what has happened until now is still shown before. A callback that waits is
  // called.
  virtual void End(bridge::v1::Fin::Reason reason) = 0;

  // Everything up to here was given out by TakeNext, or did not match.
  virtual bridge::v1::Cursor cursor() const = 0;
};

}  // namespace deka::agent

#endif  // AGENT_OBSERVATION_H_
