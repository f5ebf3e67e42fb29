// deka-agent, measured: a process of its own, between children and observers.
//
// Thread: one.
#ifndef TESTS_BENCHMARK_AGENT_SIDES_H_
#define TESTS_BENCHMARK_AGENT_SIDES_H_

#include <cstddef>
#include <cstdint>

#include "tests/benchmark/row.h"

namespace deka::benchmark {

// Events a second that the SDK shows to its user, who counts them: child (plain_child, blocks of 64
// KiB) -> deka-agent, default limits -> gRPC -> SDK, three processes. Nothing is missed: the user
// lets the child send on as it sees its messages, so that what is under way fits the child's log.
class AgentStream : public Side {
 public:
  // How many one response brings, on average.
  virtual int64_t events_per_response() const = 0;
};
absl::StatusOr<std::unique_ptr<AgentStream>> MakeAgentStream(int64_t messages, size_t bytes);

// Seconds from one message sent by the SDK to its echo observed by the SDK, in one Attach: SDK ->
// deka-agent -> child (plain_child) -> deka-agent -> SDK. The next one is sent from the callback
// that shows the echo.
SideOr MakeAgentPingPong(int64_t round_trips);

// Seconds of CPU, user and system, that deka-agent takes for one message of one child, which
// `observers` observers are shown, each on a connection of its own. The child writes
// kObservedBlock messages each kObservedPeriod, so the agent is not driven to its limit, where it
// would save work by gathering more.
inline constexpr int64_t kObservedBlock = 64;
inline constexpr int64_t kObservedPeriodNs = 4'000'000;
SideOr MakeObserversCpu(int64_t messages, int observers);

// The same for one message of `children` children, each written alone, at 10,000 a second in all,
// evenly spread; one observer is shown all of them.
inline constexpr int64_t kTotalPeriodNs = 100'000;
SideOr MakeChildrenCpu(int64_t messages, int children);

// Events a second that all observers together are shown, each all messages of all children, which
// send as fast as they can. The children's logs hold all of a measurement, which is not the
// default: nobody misses anything, and no child waits for an observer.
SideOr MakeFlood(int64_t messages, int children, int observers);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_AGENT_SIDES_H_
