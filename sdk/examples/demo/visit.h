// The visitor: a process that forked nobody, talks to the children of an agent, sees both sides of
// each conversation, and ends it.
#ifndef SDK_EXAMPLES_DEMO_VISIT_H_
#define SDK_EXAMPLES_DEMO_VISIT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace deka::examples {

// Plays ping/pong and echo with each of the children that an agent calls by these names, in both
// directions, and disconnects it. The conversation is printed to stdout. Fails if a child
// says something else than it should, not within 30 s, does not exit with code 0, or if an event
// was missed.
absl::Status Visit(const std::string& target, const std::vector<std::string>& children);

}  // namespace deka::examples

#endif  // SDK_EXAMPLES_DEMO_VISIT_H_
