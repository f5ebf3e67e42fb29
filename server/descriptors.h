// How many descriptors the agent may have, and what that allows.
//
// Thread: before others are started.
#ifndef SERVER_DESCRIPTORS_H_
#define SERVER_DESCRIPTORS_H_

#include <cstddef>
#include <string>

#include "agent/agent.h"

namespace deka::server {

// Of one child: its channel, its process, its stdout and stderr.
inline constexpr size_t kDescriptorsOfChild = 4;
// What is open in any agent, and what starting a child needs for a moment.
inline constexpr size_t kDescriptorsReserved = 256;

size_t DescriptorsFor(const agent::Limits& limits, size_t connections_max);

// Raises this process' soft limit to the hard one; where `wanted` is more and the user may (root),
// the hard one too, as far as the system goes.
struct DescriptorLimit {
  size_t before = 0;  // the soft one: what children are to get
  size_t now = 0;
};
DescriptorLimit RaiseDescriptorLimit(size_t wanted);

// Lowers `children_max` and `connections_max` to what `descriptors` allow. A sentence that says so;
// empty if they fit.
std::string FitToDescriptors(size_t descriptors, agent::Limits& limits, size_t& connections_max);

}  // namespace deka::server

#endif  // SERVER_DESCRIPTORS_H_
