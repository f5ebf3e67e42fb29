#include <memory>
#include <string>

#include "fmt/format.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/progress.h"

namespace deka::dekactl {
namespace {

struct Options {
  std::string child;
  bool now = false;
};

int Disconnect(const Options& options, Context& context) {
  const absl::StatusOr<Child> child = context.Find(options.child);
  if (!child.ok()) {
    return context.Fail(child.status());
  }
  Progress progress(context.err,
                    fmt::format("waiting for the channel of {} to close", options.child));
  const absl::Status status =
      child->Disconnect(options.now ? v1::DISCONNECT_MODE_NOW : v1::DISCONNECT_MODE_FLUSH);
  return status.ok() ? kComplete : context.Fail(status);
}

}  // namespace

void AddDisconnect(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("disconnect",
                                         "Ends a child's conversation\n\n"
                                         "Writes what is queued for it, then closes its channel. "
                                         "The process is not signalled; most end "
                                         "by themselves.");
  AddChildArgument(*command, options->child)->required();
  command->add_flag("--now", options->now, "Without writing what is queued");
  command->callback([options, &context] { context.exit_code = Disconnect(*options, context); });
}

}  // namespace deka::dekactl
