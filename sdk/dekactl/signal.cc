#include <memory>
#include <string>

#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/progress.h"
#include "sdk/dekactl/words.h"

namespace deka::dekactl {
namespace {

struct Options {
  std::string child;
  std::string signal;
};

int Signal(const Options& options, Context& context) {
  const absl::StatusOr<Child> child = context.Find(options.child);
  if (!child.ok()) {
    return context.Fail(child.status());
  }
  Progress progress(context.err, "sending the signal");
  const absl::Status status = child->Kill(*ParseSignal(options.signal));
  return status.ok() ? kComplete : context.Fail(status);
}

}  // namespace

void AddSignal(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("signal", "Sends a signal to a child's process");
  AddChildArgument(*command, options->child)->required();
  command->add_option("SIGNAME", options->signal, "TERM, SIGTERM, or a number")
      ->type_name("SIGNAME")
      ->option_text(" ")
      ->required()
      ->check(Check(ParseSignal));
  command->callback([options, &context] { context.exit_code = Signal(*options, context); });
}

}  // namespace deka::dekactl
