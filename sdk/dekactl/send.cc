#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/line_sender.h"
#include "sdk/dekactl/number.h"
#include "sdk/dekactl/progress.h"
#include "sdk/dekactl/waiter.h"

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
int SendLines(const Child& child, const Options& options, Context& context) {
  Waiter waiter;
  LineSender lines(STDIN_FILENO);
  std::atomic<bool> ended = false;
  Attachment::Options attach;
  attach.stop_on_failure = true;
  attach.on_ack = [&](int64_t through) {
    lines.Answered(through);
    waiter.Wake();
  };
  attach.observer.on_end = [&](const absl::Status&, const v1::Fin&) {
    ended = true;
    waiter.Wake();
  };
  Attachment attachment = child.Attach(std::move(attach));
  waiter.TakeInterrupts();
  if (isatty(STDIN_FILENO) == 1) {
    context.Hint("each line is sent; Ctrl-D ends it");
  }

  const auto send = [&](std::string_view message) { return attachment.Send(message); };
  absl::Status status;
  bool finished = false;
  std::optional<Progress> waiting;
  while (!ended) {
    if (!finished && (lines.done() || !status.ok())) {
      attachment.Finish();
      finished = true;
    }
    const bool reads = !finished && lines.WantsInput();
    if (reads) {
      waiting.reset();
    } else if (!waiting.has_value()) {
      waiting.emplace(context.err, fmt::format("waiting for {} to read", options.child));
    }
    const Waiter::Event event = waiter.Wait({.input = reads});
    if (event == Waiter::Event::kInterrupted) {
      attachment.Stop();
      waiting.reset();
      context.Say("interrupted: " + lines.Account());
      return kSignalled + waiter.interrupt();
    }
    if (event == Waiter::Event::kInput) {
      status = lines.Read();
    }
    if (!finished && status.ok()) {
      status = lines.SendRead(send);
    }
  }
  waiting.reset();

  const absl::Status end = attachment.Wait();
  if (end.ok() && status.ok()) {
    return kComplete;
  }
  int64_t line = 0;
  if (!end.ok()) {
    line = lines.LineOf(ParseNumber(ErrorMetadata(end, "number")).value_or(0));
  } else if (ErrorReason(status) == "INVALID_ARGUMENT") {
    line = lines.line();
  }
  return context.Fail(end.ok() ? status : end,
                      line != 0 ? fmt::format("line {}: ", line) : lines.Account() + ": ");
}

int Send(const Options& options, Context& context) {
  const absl::StatusOr<Child> child = context.Find(options.child);
  if (!child.ok()) {
    return context.Fail(child.status());
  }
  return options.json == "-" ? SendLines(*child, options, context)
                             : SendOne(*child, options, context);
}

}  // namespace

void AddSend(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "send",
      "Sends a message to a child\n\n"
      "  dekactl send worker '{\"ping\":1}'\n\n"
      "Ends when it is in the child's socket, which does not say that the child has read it. With "
      "- "
      "each line of standard input is a message, blank lines aside, in order, up to the first that "
      "is refused. Ctrl-C says which are written.");
  AddChildArgument(*command, options->child)->required();
  command->add_option("JSON", options->json, "One JSON value, or -")
      ->type_name("JSON")
      ->option_text(" ")
      ->required();
  command->callback([options, &context] { context.exit_code = Send(*options, context); });
}

}  // namespace deka::dekactl
