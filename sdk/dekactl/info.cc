#include <chrono>
#include <memory>
#include <string>

#include "sdk/dekactl/agent_text.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/progress.h"

namespace deka::dekactl {
namespace {

int Info(bool json, Context& context) {
  const absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) {
    return context.Fail(client.status());
  }
  const absl::StatusOr<v1::Agent> agent = [&] {
    Progress progress(context.err, "asking the agent");
    return client->GetAgent();
  }();
  if (!agent.ok()) {
    return context.Fail(agent.status());
  }
  const auto now = std::chrono::system_clock::now();
  if (json) {
    context.out.Line(AgentJson(*agent, now));
  } else {
    for (const std::string& line : AgentLines(*agent, now, context.out.colored())) {
      context.out.Line(line);
    }
  }
  return context.Written();
}

}  // namespace

void AddInfo(CLI::App& app, Context& context) {
  const auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "info",
      "Tells of the agent: processes, limits, what it holds\n\n"
      "The keeper holds what outlives the agent, the spare takes over from it; incarnation "
      "counts the agents there were, this one included.");
  command->add_flag("--json", *json, "One object")->option_text(" ");
  command->callback([json, &context] { context.exit_code = Info(*json, context); });
}

}  // namespace deka::dekactl
