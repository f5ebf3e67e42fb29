// Names that callers give, and the limits of what they may hold.
//
//   child := agents/{agent}/children/{child} | {child}     {child} is an id or a display name
//   agent := agents/{agent}                                {agent} may be `-`: the one that is
//   asked
#ifndef AGENT_NAMES_H_
#define AGENT_NAMES_H_

#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace deka::agent {

inline constexpr size_t kNameBytesMax = 63;
inline constexpr size_t kLabelsMax = 64;
inline constexpr size_t kRequestIdBytesMax = 64;
inline constexpr size_t kClientBytesMax = 63;
inline constexpr size_t kFilterNamesMax = 4096;

// [a-z0-9][a-z0-9-]{0,62}
bool IsId(std::string_view id);
// 63 bytes of letters, digits, `.`, `_`, `-` at most, beginning with a letter or digit.
bool IsDisplayName(std::string_view name);

// `host` as an agent's id: lower case, `-` for what an id may not hold.
std::string IdFromHost(std::string_view host);

// Ten random characters [a-z0-9].
std::string RandomId();

std::string ChildName(std::string_view agent, std::string_view child);

// The last part of a child's name, whichever way it is written. Fails with kInvalidArgument if it
// is malformed, with kChildNotFound if it is a child of another agent than `agent`. `-` only with
// `wildcard`: else it is refused.
enum class Wildcard { kRefused, kAccepted };
absl::StatusOr<std::string> ParseChildName(std::string_view name, std::string_view agent,
                                           Wildcard wildcard);

// OK if `parent` names this agent.
absl::Status ValidateParent(std::string_view parent, std::string_view agent);

// The same of an agent's own name. kInvalidArgument if it is malformed, kAgentNotFound if it is
// another agent's.
absl::Status ValidateAgentName(std::string_view name, std::string_view agent);

// kInvalidArgument, with the field's name.
absl::Status InvalidField(std::string_view field, std::string_view what);

// A control character: C0, DEL or C1. What is shown on terminals holds none, for they would obey
// it.
bool HasControl(std::string_view text);

absl::Status ValidateDisplayName(std::string_view name);  // empty: none
absl::Status ValidateLabels(const std::map<std::string, std::string>& labels,
                            std::string_view field = "labels");
absl::Status ValidateRequestId(std::string_view id);
absl::Status ValidateClient(std::string_view client);

}  // namespace deka::agent

#endif  // AGENT_NAMES_H_
