// What an observation shows and how it ends: v1::Observation, checked and parsed once.
#ifndef AGENT_OBSERVATION_SPEC_H_
#define AGENT_OBSERVATION_SPEC_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/observation.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "ipc/json_match.h"

namespace deka::agent {

namespace v1 = ::deka::bridge::v1;

struct ObservationSpec {
  // What an answer of Attach puts around a response, with room to spare: the limits below leave it
  // free.
  static constexpr size_t kEnvelopeBytes = 64;
  static constexpr size_t kResponseBytesDefault = 4 << 20;

  // INVALID_ARGUMENT names the field that is malformed. `children_named`: the filter names some.
  static absl::StatusOr<ObservationSpec> Parse(const v1::Observation& observation,
                                               bool children_named);

  // The bit that an event has in `filter_bits`: its kind's, or, if it is a message to a child, one
  // of their own.
  static constexpr uint32_t FilterBit(int kind, v1::Direction direction) {
    return 1u << (direction == v1::DIRECTION_TO_CHILD ? 31 : kind);
  }

  struct Latest {};
  struct Earliest {};
  struct Last {
    int64_t events;
  };
  struct Since {
    int64_t time_us;  // of the first event; rounded up
  };
  std::variant<Latest, Earliest, Last, Since, v1::Cursor> start = {};

  uint32_t filter_bits = ~0u;
  std::vector<ipc::JsonMatch> where = {};  // of messages: all fit
  size_t payload_bytes_max = std::numeric_limits<size_t>::max();

  bool fail_on_gap = false;
  bool fail_when_slow = false;
  std::optional<std::chrono::milliseconds> hold_max = {};  // set: nothing may be evicted unread
  int64_t events_per_second_max = 0;                       // 0: no limit

  int64_t events_max = 0;  // 0: no such end
  std::optional<std::chrono::milliseconds> duration = {};
  bool until_closed = false;

  size_t response_bytes_max = kResponseBytesDefault - kEnvelopeBytes;
  std::chrono::milliseconds heartbeat_interval{10'000};

  // Of a response with more than one event, or of a piece of the snapshot.
  size_t batch_bytes_max() const {
    return std::min(response_bytes_max, Observation::kBatchBytesMax);
  }
};

}  // namespace deka::agent

#endif  // AGENT_OBSERVATION_SPEC_H_
