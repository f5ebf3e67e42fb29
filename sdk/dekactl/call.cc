#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "ipc/json.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/line_reader.h"
#include "sdk/dekactl/progress.h"
#include "sdk/dekactl/words.h"

namespace deka::dekactl {
namespace {

struct Options {
  std::string child;
  std::string json;
  std::vector<std::string> match;
  std::string timeout = "30s";
};

// All of standard input, a message that may have many lines.
absl::StatusOr<std::string> ReadMessage() {
  LineReader reader(STDIN_FILENO);
  std::string message;
  while (!reader.at_end()) {
    if (absl::Status status = reader.Read(); !status.ok()) {
      return status;
    }
    while (const std::optional<std::string> line = reader.Next()) {
      message += *line + '\n';
    }
    if (message.size() > LineReader::kLineBytesMax) {
      return absl::ResourceExhaustedError(
          fmt::format("standard input is longer than {} bytes; no agent takes such a message",
                      LineReader::kLineBytesMax));
    }
  }
  return message;
}

// Says why there is no reply; the exit code for it.
int Fail(const absl::Status& error, Context& context) {
  const int code = context.Fail(error);
  if (absl::IsDeadlineExceeded(error)) {
    return kTimedOut;
  }
  const std::string reason = ErrorReason(error);
  // Before the message was sent, or after it.
  const bool ended = reason == "CHILD_EXITED" || reason == "CHANNEL_CLOSED" ||
                     reason == "CHANNEL_FAILED" || reason == "NO_REPLY_CHANNEL_CLOSED";
  return ended ? kChildEnded : code;
}

int Call(const Options& options, Context& context) {
  const absl::StatusOr<std::string> json =
      options.json == "-" ? ReadMessage() : absl::StatusOr<std::string>(options.json);
  if (!json.ok()) {
    return context.Fail(json.status());
  }
  const absl::StatusOr<Child> child = context.Find(options.child);
  if (!child.ok()) {
    return context.Fail(child.status());
  }
  Child::CallOptions call;
  for (const std::string& match : options.match) {
    call.where.push_back(*ParseWhere(match));
  }
  call.timeout = *ParseDuration(options.timeout);
  const absl::StatusOr<v1::Event> reply = [&] {
    Progress progress(context.err, fmt::format("waiting for {} to reply", options.child));
    return child->Call(*json, std::move(call));
  }();
  if (!reply.ok()) {
    return Fail(reply.status(), context);
  }
  std::string line = reply->json();
  ipc::BreaksToSpaces(line);
  context.out.Line(line);
  return context.Written();
}

}  // namespace

void AddCall(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "call",
      "Sends a message to a child, and prints its reply\n\n"
      "  dekactl call worker '{\"id\":7,\"ping\":1}' --match /id=7\n\n"
      "The reply is the first message from the child behind the one that was sent in which all of "
      "--match fit. Exits with 5 if none came in time, with 6 if the child ended before.");
  AddChildArgument(*command, options->child)->required();
  command->add_option("JSON", options->json, "One JSON value, or - for what standard input holds")
      ->type_name("JSON")
      ->option_text(" ")
      ->required();
  command
      ->add_option("--match", options->match,
                   "What stands in the reply: VALUE at POINTER, a JSON Pointer, or, without a "
                   "VALUE, anything. A VALUE that is no JSON is a string. Repeatable; default: any "
                   "message is the reply")
      ->type_name("POINTER[=VALUE]")
      ->allow_extra_args(false)
      ->check(Check(ParseWhere));
  command->add_option("--timeout", options->timeout, "How long to wait; default: 30s")
      ->type_name("DURATION")
      ->check(Check(ParseDuration));
  command->callback([options, &context] {
    CheckWhere("--match", options->match);
    context.exit_code = Call(*options, context);
  });
}

}  // namespace deka::dekactl
