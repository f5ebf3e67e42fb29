// An observation as a call writes it: its pieces, and a heartbeat when nothing was shown for a
// while.
//
//   agent::Observation -> Feed -> bytes of one ObserveResponse after the other
//
// The one who writes waits until Ready() or it is time(), then takes what there is, one piece for
// each write: what happens meanwhile gathers in the log.
//
// Thread: the calls' thread.
#ifndef SERVER_FEED_H_
#define SERVER_FEED_H_

#include <memory>

#include "absl/status/status.h"
#include "agent/observation.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "server/call.h"

namespace deka::server {

class Feed {
 public:
  Feed(Call& call, std::unique_ptr<agent::Observation> observation);

  // Whether Take() may have something.
  bool Ready() const { return !ended_ && (*news_ || CallClock::now() >= time()); }

  // When it has something even if nothing happens.
  CallClock::time_point time() const;

  // Fills `response` with the next piece, or heartbeat. False: nothing now.
  bool Take(agent::Response& response);

  // Everything was taken; status() says how it ended.
  bool ended() const { return ended_; }
  const absl::Status& status() const { return status_; }

  // As agent::Observation::End: with AGENT_STOPPING what has happened until now is shown before.
  void End(bridge::v1::Fin::Reason reason);

 private:
  const Call::Remote remote_;
  const std::unique_ptr<agent::Observation> observation_;
  // Whether the log has told that there is something; shared with it.
  const std::shared_ptr<bool> news_ = std::make_shared<bool>(true);
  CallClock::time_point heartbeat_at_ = Call::kNever;  // not before `attached`
  bool ended_ = false;
  absl::Status status_;
};

// A response as a message to be written: alone, or as the `observed` of an AttachResponse. What it
// shares is not copied.
grpc::ByteBuffer ToObserveResponse(agent::Response& response);
grpc::ByteBuffer ToAttachResponse(agent::Response& response);

}  // namespace deka::server

#endif  // SERVER_FEED_H_
