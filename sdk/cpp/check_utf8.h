// Text that a protobuf `string` can carry.
#ifndef SDK_CPP_CHECK_UTF8_H_
#define SDK_CPP_CHECK_UTF8_H_

#include "absl/status/status.h"
#include "google/protobuf/message.h"

namespace deka {

// INVALID_ARGUMENT naming the first `string` field that is not UTF-8. Protobuf would send it all
// the same, and the agent refuse the whole message as malformed.
absl::Status CheckUtf8(const google::protobuf::Message& message);

}  // namespace deka

#endif  // SDK_CPP_CHECK_UTF8_H_
