// What an error of the agent says to a program.
#ifndef SDK_CPP_ERROR_H_
#define SDK_CPP_ERROR_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace deka {

// `ErrorInfo.reason` of an error, "CHILD_NOT_FOUND"; empty if it has none.
std::string ErrorReason(const absl::Status& status);
// A value of its metadata, as `candidates` of CHILD_AMBIGUOUS; empty if it has none.
std::string ErrorMetadata(const absl::Status& status, std::string_view key);

}  // namespace deka

#endif  // SDK_CPP_ERROR_H_
