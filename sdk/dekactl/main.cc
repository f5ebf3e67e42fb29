// dekactl: an agent's children from a shell.
#include <signal.h>

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "ipc/standard_descriptors.h"
#include "ipc/version.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/context.h"
#include "sdk/dekactl/help.h"

namespace deka::dekactl {
namespace {

constexpr char kExitCodes[] =
    "Exit codes: 0 complete, 1 error, 2 usage, 3 no such child, 4 something was missed, of call "
    "5 timed out, 6 the child ended. 128 + n: ended by signal n, so 130 by Ctrl-C, which for tail "
    "and attach is an end like others once they show events.";

void AddTarget(CLI::App& app, Context& context) {
  app.add_option("--target", context.target,
                 "The agent's socket, unix:PATH; default: DEKA_TARGET, else the agent's default")
      ->type_name("TARGET");
}

int Run(int argc, char** argv) {
  ipc::HoldStandardDescriptors();
  // A reader that is gone is an error of the write.
  signal(SIGPIPE, SIG_IGN);

  Context context;
  CLI::App app("Sees, asks and ends the children of an agent.", "dekactl");
  app.formatter(std::make_shared<Help>());
  app.set_version_flag("--version", fmt::format("dekactl {}", ipc::kVersion), "Says its version");
  app.require_subcommand(1);
  AddFork(app, context);
  AddPs(app, context);
  AddWait(app, context);
  AddSend(app, context);
  AddCall(app, context);
  AddTail(app, context);
  AddAttach(app, context);
  AddDisconnect(app, context);
  AddSignal(app, context);
  AddInfo(app, context);
  AddUpgrade(app, context);
  AddCompletion(app, context);
  AddTarget(app, context);
  for (CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    command->group("Commands");
    command->footer(kExitCodes);
    AddTarget(*command, context);
  }
  app.footer(fmt::format("`dekactl COMMAND --help` says more.\n\n{}", kExitCodes));

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForVersion& version) {
    context.out.Line(version.what());
    return context.Written();
  } catch (const CLI::Success&) {
    const CLI::App& chosen = ChosenCommand(app);
    std::string help = &chosen == &app ? app.help() : chosen.help(app.get_name());
    help.erase(help.find_last_not_of('\n') + 1);
    context.out.Line(help);
    return context.Written();
  } catch (const CLI::ParseError& error) {
    context.Say(UsageError(app, error));
    return kUsage;
  }
  return context.exit_code;
}

}  // namespace
}  // namespace deka::dekactl

int main(int argc, char** argv) { return deka::dekactl::Run(argc, argv); }
