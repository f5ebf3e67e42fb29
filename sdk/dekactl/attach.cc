#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "fmt/format.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/line_sender.h"
#include "sdk/dekactl/stream.h"

namespace deka::dekactl {
namespace {

struct Options {
  std::string child;
  bool json = false;
};

int Attach(const Options& options, Context& context) {
  Waiter waiter;
  const absl::StatusOr<Child> child = context.Find(options.child);
  if (!child.ok()) {
    return context.Fail(child.status());
  }
  Stream stream(context, waiter, options.json);
  LineSender lines(STDIN_FILENO);
  std::atomic<bool> refused = false;
  const auto refuse = [&](int64_t line, const absl::Status& status) {
    refused = true;
    context.Fail(status, fmt::format("line {}: ", line));
  };
  Attachment attachment = child->Attach(
      {.observation = v1::Observation(),
       .observer = stream.Observer(),
       .on_ack =
           [&](int64_t through) {
             lines.Answered(through);
             waiter.Wake();
           },
       .on_failed = [&](int64_t number,
                        const absl::Status& status) { refuse(lines.LineOf(number), status); }});
  waiter.TakeInterrupts();
  context.Hint("attached; each line is sent, Ctrl-D ends it");

  const auto send = [&](std::string_view message) { return attachment.Send(message); };
  absl::Status status;
  bool finished = false;
  bool interrupted = false;
  while (status.ok() && !interrupted && !stream.end().has_value()) {
    // What the child has written is shown to its last event; nothing can be sent any more.
    if (!finished && (lines.done() || stream.closed())) {
      attachment.Finish();
      finished = true;
    }
    const bool reads = !finished && lines.WantsInput();
    const Waiter::Event event = waiter.Wait({.input = reads, .reader = true});
    interrupted = event == Waiter::Event::kInterrupted || event == Waiter::Event::kReaderGone ||
                  context.out.error() != 0;
    if (!interrupted && event == Waiter::Event::kInput) {
      status = lines.Read();
    }
    if (!interrupted && !finished && status.ok()) {
      status = lines.SendRead(send);
      // What this client itself refuses fails alone, as what the agent refuses does.
      while (ErrorReason(status) == "INVALID_ARGUMENT" && !stream.end().has_value()) {
        refuse(lines.line(), status);
        status = lines.SendRead(send);
      }
    }
  }
  attachment.Stop();
  context.err.Status("");
  // Behind the child's last event and the last answer there is nothing that an end could have cut.
  const bool complete = stream.closed() && lines.all_answered();
  if (const std::optional<Stream::End> end = stream.end();
      end.has_value() && !end->status.ok() && !complete) {
    status = end->status;
  }
  if (!status.ok()) {
    return context.Fail(status);
  }
  if (interrupted && !lines.all_answered()) {
    context.Say("interrupted: " + lines.Account());
    return waiter.interrupt() == 0 ? kError : kSignalled + waiter.interrupt();
  }
  const int written = context.Written();
  return written != kComplete ? written : refused ? kError : stream.missed() ? kMissed : kComplete;
}

}  // namespace

void AddAttach(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "attach",
      "Holds a conversation with a child\n\n"
      "Shows its events from now on, and sends each line of standard input to it, blank lines "
      "aside. "
      "Ends with the input, with the child, or with Ctrl-C; the child goes on. Exits with 1 if a "
      "message was refused.");
  AddChildArgument(*command, options->child)->required();
  command->add_flag("--json", options->json, "Events as tail --json prints them");
  command->callback([options, &context] { context.exit_code = Attach(*options, context); });
}

}  // namespace deka::dekactl
