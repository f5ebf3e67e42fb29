// The commands. Each adds itself to the tree: its options, their help, and what it does.
#ifndef SDK_DEKACTL_COMMANDS_H_
#define SDK_DEKACTL_COMMANDS_H_

#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "sdk/dekactl/context.h"

namespace deka::dekactl {

// `app` and `context` outlive the parse, which runs the command.
void AddFork(CLI::App& app, Context& context);
void AddPs(CLI::App& app, Context& context);
void AddWait(CLI::App& app, Context& context);
void AddSend(CLI::App& app, Context& context);
void AddCall(CLI::App& app, Context& context);
void AddTail(CLI::App& app, Context& context);
void AddAttach(CLI::App& app, Context& context);
void AddDisconnect(CLI::App& app, Context& context);
void AddSignal(CLI::App& app, Context& context);
void AddInfo(CLI::App& app, Context& context);
void AddUpgrade(CLI::App& app, Context& context);
void AddCompletion(CLI::App& app, Context& context);

// The argument CHILD, or with a vector any number of them.
template <typename Value>
CLI::Option* AddChildArgument(CLI::App& command, Value& value) {
  return command.add_option("CHILD", value, "Its name, its id, or its resource name")
      ->type_name("CHILD")
      ->option_text(" ");
}

// Refuses two values for one key in the pairs that `flag` gives: which was meant?
inline void CheckKeys(const std::string& flag, const std::vector<std::string>& pairs) {
  std::set<std::string> keys;
  for (const std::string& pair : pairs) {
    const std::string key = pair.substr(0, pair.find('='));
    if (!keys.insert(key).second) {
      throw CLI::ValidationError(flag, key + " is given twice; give it one value");
    }
  }
}

// Refuses more conditions than the agent takes; `flag` names what gives them.
inline void CheckWhere(const std::string& flag, const std::vector<std::string>& where) {
  constexpr size_t kWhereMax = 16;
  if (where.size() > kWhereMax) {
    throw CLI::ValidationError(flag, std::to_string(where.size()) +
                                         " conditions are too many; write at most " +
                                         std::to_string(kWhereMax));
  }
}

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_COMMANDS_H_
