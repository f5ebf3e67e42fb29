// What an observation tells.
#ifndef SDK_CPP_OBSERVER_H_
#define SDK_CPP_OBSERVER_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka {

namespace v1 = ::deka::bridge::v1;

// Each may be empty.
struct Observer {
  // The observation stands. Again after each resume, as are the children and the snapshot's end.
  std::function<void(const v1::Attached&)> on_attached = {};
  std::function<void(const v1::Child&)> on_child = {};
  std::function<void()> on_snapshot_complete = {};

  // In order, each once, whatever happened to the connection.
  std::function<void(const v1::Event&)> on_event = {};
  // Events missed. `from_child_sequence` is filled in from what was shown before.
  std::function<void(const v1::Gap&)> on_gap = {};
  std::function<void(const v1::Heartbeat&)> on_heartbeat = {};

  // The connection is lost and is being resumed; told once until it stands again.
  std::function<void(const absl::Status& reason)> on_lost = {};
  std::function<void(const v1::Cursor&)> on_resumed = {};
  // It goes on with another agent, which took over from the one before: the `incarnation`th. After
  // on_attached. Nothing is lost by it.
  std::function<void(int64_t incarnation)> on_replaced = {};

  // The last call, exactly once unless it is stopped: OK with the agent's Fin, or the error that
  // ended it.
  std::function<void(const absl::Status&, const v1::Fin&)> on_end = {};
};

}  // namespace deka

#endif  // SDK_CPP_OBSERVER_H_
