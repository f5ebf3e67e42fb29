#include <unistd.h>

#include <memory>
#include <optional>
#include <string>

#include "fmt/format.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/line_reader.h"
#include "sdk/dekactl/progress.h"

namespace deka::dekactl {
namespace {

struct Options {
  std::string child;
  std::string json;
};

int SendOne(const Child& child, const Options& options, Context& context) {
  Progress progress(context.err, fmt::format("waiting for {} to read", options.child));
  const absl::Status status = child.Send(options.json).status();
  return status.ok() ? kComplete : context.Fail(status);
}

// One message a line. Waits where the child does not read; the first that is refused is the last.
int SendLines(const Client& client, const Child& child, const Options& options, Context& context) {
  absl::StatusOr<Attachment> attachment = client.Attach(child.name(), {.stop_on_failure = true});
  if (!attachment.ok()) {
    return context.Fail(attachment.status());
  }
  LineReader reader(STDIN_FILENO);
  absl::Status status;
  while (status.ok() && !reader.at_end()) {
    status = reader.Read();
    while (status.ok()) {
      const std::optional<std::string> line = reader.Next();
      if (!line.has_value()) {
        break;
      }
      status = attachment->Send(*line).status();
    }
  }
  attachment->Finish();
  Progress progress(context.err, fmt::format("waiting for {} to read", options.child));
  // Every line has a number of its own, from 1: the attachment counts as an editor does.
  const absl::Status end = attachment->Wait();
  if (end.ok()) {
    return status.ok() ? kComplete : context.Fail(status);
  }
  const std::string number = ErrorMetadata(end, "number");
  return context.Fail(end, number.empty() ? "" : fmt::format("line {}: ", number));
}

int Send(const Options& options, Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) {
    return context.Fail(client.status());
  }
  const absl::StatusOr<Child> child = client->Find(options.child);
  if (!child.ok()) {
    return context.Fail(child.status());
  }
  return options.json == "-" ? SendLines(*client, *child, options, context)
                             : SendOne(*child, options, context);
}

}  // namespace

void AddSend(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "send",
      "Sends a message to a child: dekactl send worker '{\"ping\":1}'\n"
      "Ends when it is in the child's socket, which does not say that the child has read it.");
  AddChildArgument(*command, options->child)->required();
  command
      ->add_option(
          "JSON", options->json,
          "One JSON value, or - for one on each line of standard input, in order, up to the "
          "first that is refused")
      ->type_name("JSON")
      ->option_text(" ")
      ->required();
  command->callback([options, &context] { context.exit_code = Send(*options, context); });
}

}  // namespace deka::dekactl
