#include "agent/observation_spec.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "agent/names.h"
#include "fmt/format.h"

namespace deka::agent {
namespace {

using std::chrono::milliseconds;

constexpr int64_t kResponseBytesMin = 64 << 10;
// No event is larger: a bound beyond it means the same.
constexpr int64_t kResponseBytesMax = 128 << 20;
constexpr int kWhereMax = 16;
constexpr milliseconds kHoldDefault{5000};
constexpr milliseconds kHoldCeiling{8000};

// Unset if it is out of range or not normalised.
std::optional<milliseconds> ToMilliseconds(const google::protobuf::Duration& duration) {
  constexpr int64_t kSecondsMax = 315'576'000'000;
  const int64_t seconds = duration.seconds();
  const int32_t nanos = duration.nanos();
  if (seconds < -kSecondsMax || seconds > kSecondsMax) return std::nullopt;
  if (nanos <= -1'000'000'000 || nanos >= 1'000'000'000) return std::nullopt;
  if ((seconds < 0 && nanos > 0) || (seconds > 0 && nanos < 0)) return std::nullopt;
  return milliseconds(seconds * 1000 + nanos / 1'000'000);
}

// Rounded up: an event is older than a time or not. Unset if it is no time.
std::optional<int64_t> ToMicroseconds(const google::protobuf::Timestamp& time) {
  constexpr int64_t kSecondsMin = -62'135'596'800, kSecondsMax = 253'402'300'799;
  if (time.seconds() < kSecondsMin || time.seconds() > kSecondsMax) return std::nullopt;
  if (time.nanos() < 0 || time.nanos() > 999'999'999) return std::nullopt;
  return time.seconds() * 1'000'000 + (time.nanos() + 999) / 1000;
}

// Each of the following reads one part of the request into `spec`.

absl::Status ParseStart(const v1::ObserveStart& start, ObservationSpec& spec) {
  switch (start.start_case()) {
    case v1::ObserveStart::kLatest:
    case v1::ObserveStart::START_NOT_SET:
      return absl::OkStatus();
    case v1::ObserveStart::kEarliest:
      spec.start = ObservationSpec::Earliest();
      return absl::OkStatus();
    case v1::ObserveStart::kLast:
      if (start.last() < 1) {
        return InvalidField("observation.start.last", "must be at least 1.");
      }
      spec.start = ObservationSpec::Last{start.last()};
      return absl::OkStatus();
    case v1::ObserveStart::kAfter:
      if (start.after().sequence() < 0) {
        return InvalidField("observation.start.after", "has a negative sequence.");
      }
      spec.start = start.after();
      return absl::OkStatus();
    case v1::ObserveStart::kSince:
      const std::optional<int64_t> time_us = ToMicroseconds(start.since());
      if (!time_us) {
        return InvalidField(
            "observation.start.since",
            "is no time: seconds of the years 1 to 9999, and nanos of 0 to 999999999.");
      }
      spec.start = ObservationSpec::Since{*time_us};
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status ParseFilter(const v1::Observation& observation, ObservationSpec& spec) {
  constexpr uint32_t kFromChild =
      ObservationSpec::FilterBit(v1::EVENT_KIND_MESSAGE, v1::DIRECTION_FROM_CHILD);
  constexpr uint32_t kToChild =
      ObservationSpec::FilterBit(v1::EVENT_KIND_MESSAGE, v1::DIRECTION_TO_CHILD);
  if (observation.kinds_size() > 0) spec.filter_bits = 0;
  for (const int kind : observation.kinds()) {
    if (kind == v1::EVENT_KIND_UNSPECIFIED || !v1::EventKind_IsValid(kind)) {
      return InvalidField("observation.kinds",
                          fmt::format("holds {}, which is no kind of event.", kind));
    }
    spec.filter_bits |= 1u << kind;
    if (kind == v1::EVENT_KIND_MESSAGE) spec.filter_bits |= kToChild;
  }
  if (!v1::Direction_IsValid(observation.direction())) {
    return InvalidField(
        "observation.direction",
        fmt::format("is {}, which is no direction.", static_cast<int>(observation.direction())));
  }
  if (observation.direction() == v1::DIRECTION_FROM_CHILD) spec.filter_bits &= ~kToChild;
  if (observation.direction() == v1::DIRECTION_TO_CHILD) spec.filter_bits &= ~kFromChild;

  if (observation.where_size() > kWhereMax) {
    return InvalidField("observation.where", fmt::format("has {} conditions, at most {} are taken.",
                                                         observation.where_size(), kWhereMax));
  }
  for (int i = 0; i < observation.where_size(); ++i) {
    const v1::ContentFilter& filter = observation.where(i);
    auto match = ipc::JsonMatch::Create(
        filter.pointer(),
        filter.has_equals() ? std::optional<std::string_view>(filter.equals()) : std::nullopt);
    if (!match.ok()) {
      return InvalidField(fmt::format("observation.where[{}]", i),
                          {match.status().message().data(), match.status().message().size()});
    }
    spec.where.push_back(*std::move(match));
  }
  if (observation.payload_bytes_max() < 0) {
    return InvalidField("observation.payload_bytes_max",
                        "must not be negative; leave it out for all of each payload.");
  }
  if (observation.has_payload_bytes_max()) {
    spec.payload_bytes_max = static_cast<size_t>(observation.payload_bytes_max());
  }
  return absl::OkStatus();
}

absl::Status ParseEnd(const v1::Observation& observation, bool children_named,
                      ObservationSpec& spec) {
  if (observation.events_max() < 0) {
    return InvalidField("observation.events_max", "must not be negative; 0 means no such end.");
  }
  spec.events_max = observation.events_max();
  if (observation.has_duration()) {
    spec.duration = ToMilliseconds(observation.duration());
    if (!spec.duration || spec.duration->count() <= 0) {
      return InvalidField("observation.duration",
                          "must be a valid time of at least 1 ms; leave it out for no such end.");
    }
  }
  if (observation.until_closed() && !children_named) {
    return InvalidField("observation.until_closed", "needs children that are named in the filter.");
  }
  spec.until_closed = observation.until_closed();
  return absl::OkStatus();
}

absl::Status ParsePace(const v1::Observation& observation, ObservationSpec& spec) {
  if (observation.events_per_second_max() < 0) {
    return InvalidField("observation.events_per_second_max",
                        "must not be negative; 0 means no such limit.");
  }
  spec.events_per_second_max = observation.events_per_second_max();
  spec.fail_on_gap = observation.fail_on_gap();
  switch (observation.when_slow()) {
    case v1::SLOW_POLICY_UNSPECIFIED:
    case v1::SLOW_POLICY_GAP:
      break;
    case v1::SLOW_POLICY_DISCONNECT:
      spec.fail_when_slow = true;
      break;
    case v1::SLOW_POLICY_BLOCK:
      spec.hold_max = kHoldDefault;
      break;
    default:
      return InvalidField(
          "observation.when_slow",
          fmt::format("is {}, which is no policy.", static_cast<int>(observation.when_slow())));
  }
  if (observation.has_hold_max()) {
    const auto hold = ToMilliseconds(observation.hold_max());
    if (!hold || hold->count() < 1 || *hold > kHoldCeiling) {
      return InvalidField("observation.hold_max", "must be 1 ms to 8 s; leave it out for 5 s.");
    }
    if (!spec.hold_max) {
      return InvalidField("observation.hold_max", "needs when_slow: SLOW_POLICY_BLOCK.");
    }
    spec.hold_max = hold;
  }
  return absl::OkStatus();
}

absl::Status ParseResponses(const v1::Observation& observation, ObservationSpec& spec) {
  const int64_t bytes = observation.response_bytes_max();
  if (bytes != 0 && bytes < kResponseBytesMin) {
    return InvalidField("observation.response_bytes_max",
                        fmt::format("must be 0 or at least {}.", kResponseBytesMin));
  }
  if (bytes != 0) {
    spec.response_bytes_max =
        static_cast<size_t>(std::min(bytes, kResponseBytesMax)) - ObservationSpec::kEnvelopeBytes;
  }
  if (observation.has_heartbeat_interval()) {
    const auto interval = ToMilliseconds(observation.heartbeat_interval());
    if (!interval || interval->count() < 1000 || interval->count() > 60'000) {
      return InvalidField("observation.heartbeat_interval", "must be 1 to 60 seconds.");
    }
    spec.heartbeat_interval = *interval;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ObservationSpec> ObservationSpec::Parse(const v1::Observation& observation,
                                                       bool children_named) {
  ObservationSpec spec;
  absl::Status status = ParseStart(observation.start(), spec);
  status.Update(ParseFilter(observation, spec));
  status.Update(ParseEnd(observation, children_named, spec));
  status.Update(ParsePace(observation, spec));
  status.Update(ParseResponses(observation, spec));
  if (!status.ok()) return status;
  return spec;
}

}  // namespace deka::agent
