#include <filesystem>
#include <memory>
#include <string>
#include <system_error>

#include "fmt/format.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/progress.h"

namespace deka::dekactl {
namespace {

int Upgrade(const std::string& binary, Context& context) {
  const absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) {
    return context.Fail(client.status());
  }
  std::error_code error;
  const std::string path =
      binary.empty() ? "" : std::filesystem::absolute(binary, error).lexically_normal().string();
  const absl::StatusOr<v1::Agent> agent = [&] {
    Progress progress(context.err, "waiting for the new agent");
    return client->Upgrade(path);
  }();
  if (!agent.ok()) {
    return context.Fail(agent.status());
  }
  context.out.Line(Printable(fmt::format("version {}, pid {}, incarnation {}", agent->version(),
                                         agent->pid(), agent->incarnation())));
  return context.Written();
}

}  // namespace

void AddUpgrade(CLI::App& app, Context& context) {
  const auto binary = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "upgrade",
      "Puts a new program in the agent's place\n\n"
      "The children go on, and so does who observes them. Prints which agent serves now. A program "
      "that does not fit is refused, and the agent goes on as it is.");
  command
      ->add_option("--binary", *binary,
                   "The new deka-agent; default: what is now at the path of the one that runs")
      ->type_name("FILE");
  command->callback([binary, &context] { context.exit_code = Upgrade(*binary, context); });
}

}  // namespace deka::dekactl
