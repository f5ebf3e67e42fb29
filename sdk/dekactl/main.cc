// dekactl: an agent's children from a shell.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <string>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/context.h"

namespace deka::dekactl {
namespace {

// Standard descriptors that are closed must not become something else's: a socket would get what is
// printed. These answer EBADF to who uses them.
void HoldStandardDescriptors() {
  for (const int descriptor : {0, 1, 2}) {
    const int flags = fcntl(descriptor, F_GETFD);
    // What was inherited is not close-on-exec. gRPC tries whether there are eventfds when it is
    // loaded, and leaves the one that it gets as 0 open.
    if (flags < 0 || (flags & FD_CLOEXEC) != 0) {
      const int held = open("/dev/null", descriptor == 0 ? O_WRONLY : O_RDONLY);
      if (held != descriptor) {
        dup2(held, descriptor);
        close(held);
      }
    }
  }
}

// The innermost command that was named.
const CLI::App& Chosen(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? app : *chosen.front();
}

int Run(int argc, char** argv) {
  HoldStandardDescriptors();
  // A reader that is gone is an error of the write.
  signal(SIGPIPE, SIG_IGN);

  Context context;
  CLI::App app("Sees, asks and ends the children of an agent.", "dekactl");
  app.add_option("--target", context.target,
                 "The agent's socket, unix:PATH; default: DEKA_TARGET, else the agent's default")
      ->type_name("TARGET");
  app.require_subcommand(1);
  app.footer(
      "CHILD is a name, an id or a resource name; `dekactl COMMAND --help` says more.\n"
      "Exit codes: 0 complete, 1 error, 2 usage, 3 no such child, 4 something was missed, of call "
      "5 timed out, 6 the child ended, 128 + n ended by signal n, as 130 by Ctrl-C.");
  AddFork(app, context);
  AddPs(app, context);
  AddWait(app, context);
  AddSend(app, context);
  AddCall(app, context);
  AddTail(app, context);
  AddAttach(app, context);
  AddDisconnect(app, context);
  AddSignal(app, context);
  AddCompletion(app, context);

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success&) {
    const CLI::App& chosen = Chosen(app);
    std::string help = &chosen == &app ? app.help() : chosen.help(app.get_name());
    help.erase(help.find_last_not_of('\n') + 1);
    context.out.Line(help);
    return context.Written();
  } catch (const CLI::ParseError& error) {
    const CLI::App& chosen = Chosen(app);
    context.Say(fmt::format("{}; see dekactl {}--help", error.what(),
                            &chosen == &app ? "" : chosen.get_name() + " "));
    return kUsage;
  }
  return context.exit_code;
}

}  // namespace
}  // namespace deka::dekactl

int main(int argc, char** argv) { return deka::dekactl::Run(argc, argv); }
