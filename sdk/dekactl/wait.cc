#include <memory>
#include <string>

#include "fmt/format.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/progress.h"

namespace deka::dekactl {
namespace {

int Wait(const std::string& name, Context& context) {
  const absl::StatusOr<Child> child = context.Find(name);
  if (!child.ok()) {
    return context.Fail(child.status());
  }
  const absl::StatusOr<v1::ExitStatus> status = [&] {
    Progress progress(context.err, fmt::format("waiting for {} to exit", name));
    return child->Wait();
  }();
  if (!status.ok()) {
    return context.Fail(status.status());
  }
  switch (status->result_case()) {
    case v1::ExitStatus::kCode:
      return status->code();
    case v1::ExitStatus::kSignal:
      return 128 + status->signal();
    default:
      context.Say(fmt::format("{} has ended, but how could not be told: {}", name,
                              status->unknown_reason()));
      return kExitUnknown;
  }
}

}  // namespace

void AddWait(CLI::App& app, Context& context) {
  const auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "wait",
      "Waits until a child has exited, and exits as it did\n\n"
      "With its code, with 128 + n after signal n, with 125 if how it ended could not be told.");
  AddChildArgument(*command, *name)->required();
  command->callback([name, &context] { context.exit_code = Wait(*name, context); });
}

}  // namespace deka::dekactl
