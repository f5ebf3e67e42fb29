// What a caller asks a child to be, checked and made into what ipc::ChildProcess forks.
#ifndef AGENT_SPEC_H_
#define AGENT_SPEC_H_

#include <chrono>
#include <csignal>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/agent.h"
#include "deka/bridge/v1/child.pb.h"
#include "ipc/child_process.h"
#include "ipc/dialect.h"

namespace deka::agent {

inline constexpr size_t kMessageBytesCeiling = 64 << 20;
inline constexpr size_t kCommandBytesMax = 1 << 20;  // arguments and environment together
// What the kernel counts for each beside its bytes: a NUL and a pointer.
inline constexpr size_t kWordBytes = 1 + sizeof(char*);
inline constexpr size_t kPathBytesMax = 4095;  // Linux's own
// What a queue has room for beside the value of a message: what its dialect puts around it.
inline constexpr size_t kQueueOverheadBytes = 4 << 10;
// What a log has room for beside its value.
inline constexpr size_t kLogOverheadBytes = 64 << 10;

// The limits of one child, all set.
struct ChildLimits {
  size_t message_bytes_max = 0;
  size_t queue_bytes_max = 0;
  size_t log_bytes_max = 0;
};

// INVALID_ARGUMENT names the limit that does not fit the others, with `within` before it.
absl::Status ValidateLimits(const Limits& limits);
absl::Status ValidateChildLimits(const ChildLimits& child, const Limits& agent,
                                 std::string_view within = "");

// `asked`, with the agent's where it has 0.
absl::StatusOr<ChildLimits> ChildLimitsOf(const v1::ChildLimits& asked, const Limits& agent);

// How the API's children are forked: stdin from /dev/null, stdout and stderr captured, in a process
// group of their own. `environment` is the agent's, "K=V" each. The time-out is not passed on: the
// agent records the signal that it sends.
absl::StatusOr<ipc::ForkOptions> ForkOptionsOf(const v1::ChildSpec& spec, const Limits& agent,
                                               const std::vector<std::string>& environment);

// Unset: none.
absl::StatusOr<std::chrono::milliseconds> TimeoutOf(const v1::ChildSpec& spec);

inline bool IsSignal(int signal) { return signal >= 1 && signal <= SIGRTMAX; }

v1::Dialect ToProto(ipc::Dialect dialect);

// Those of `limits` that the API knows; a number that is too large for its field is the largest
// one.
v1::AgentLimits ToProto(const Limits& limits);

}  // namespace deka::agent

#endif  // AGENT_SPEC_H_
