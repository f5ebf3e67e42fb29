// Completion for shells, made from the tree of commands.
//
// What an option or argument takes is told by its type name: `a|b|c` are words (an upper-case part
// of one is the user's to fill in), CHILD a child's name, asked from the agent, DIR a directory,
// PROGRAM a command, SIGNAME a signal; nothing is known of others.
#ifndef SDK_DEKACTL_COMPLETION_SCRIPT_H_
#define SDK_DEKACTL_COMPLETION_SCRIPT_H_

#include <string>

#include "CLI/CLI.hpp"

namespace deka::dekactl {

std::string BashCompletion(const CLI::App& app);
std::string ZshCompletion(const CLI::App& app);

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_COMPLETION_SCRIPT_H_
