// Whether the value of a message fits the conditions of an observation, as bridge_service.proto
// says; by protobuf's own reader of JSON.
#ifndef TESTS_VALIDATOR_CONTENT_H_
#define TESTS_VALIDATOR_CONTENT_H_

#include <optional>

#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka::validator {

// True for an event that is no message. Unset if its payload is cut, or is more than that reader
// understands.
std::optional<bool> ContentFits(const bridge::v1::Event& event,
                                const bridge::v1::Observation& observation);

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_CONTENT_H_
