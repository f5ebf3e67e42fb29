#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fmt/format.h"
#include "google/protobuf/util/time_util.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/cursor_text.h"
#include "sdk/dekactl/stream.h"
#include "sdk/dekactl/words.h"

namespace deka::dekactl {
namespace {

struct Options {
  std::vector<std::string> children;
  std::string from = "latest";
  std::string direction;
  std::vector<std::string> kinds;
  bool json = false;
  int64_t events_max = 0;
  std::string duration;
};

v1::ObserveRequest Request(const Options& options) {
  v1::ObserveRequest request;
  request.mutable_filter()->mutable_children()->Assign(options.children.begin(),
                                                       options.children.end());
  v1::Observation& observation = *request.mutable_observation();
  *observation.mutable_start() = *ParseStart(options.from);
  observation.set_until_closed(!options.children.empty());
  observation.set_events_max(options.events_max);
  for (const std::string& kind : options.kinds) {
    observation.add_kinds(*ParseKind(kind));
  }
  if (!options.direction.empty()) {
    observation.set_direction(*ParseDirection(options.direction));
    // A direction is one of messages, so without a kind it asks for messages.
    if (options.kinds.empty()) {
      observation.add_kinds(v1::EVENT_KIND_MESSAGE);
    }
  }
  if (!options.duration.empty()) {
    *observation.mutable_duration() = google::protobuf::util::TimeUtil::MillisecondsToDuration(
        ParseDuration(options.duration)->count());
  }
  return request;
}

std::string_view Reason(v1::Fin::Reason reason) {
  switch (reason) {
    case v1::Fin::REASON_EVENTS_MAX:
      return "as many events as were asked for";
    case v1::Fin::REASON_DURATION:
      return "the time is over";
    case v1::Fin::REASON_CLOSED:
      return "every child that was named has closed";
    case v1::Fin::REASON_AGENT_STOPPING:
      return "the agent is stopping";
    default:
      return "the agent has ended the stream";
  }
}

int Tail(const Options& options, Context& context) {
  Waiter waiter;
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) {
    return context.Fail(client.status());
  }
  Stream stream(context, waiter, options.json);
  absl::StatusOr<Observation> observation = client->Observe(Request(options), stream.Observer());
  if (!observation.ok()) {
    return context.Fail(observation.status());
  }
  context.Hint("watching; Ctrl-C ends it");
  std::string_view why = "interrupted";
  for (;;) {
    const Waiter::Event event = waiter.Wait();
    if (event == Waiter::Event::kInterrupted || event == Waiter::Event::kReaderGone ||
        context.out.error() != 0) {
      observation->Stop();
      break;
    }
    if (stream.end().has_value()) {
      break;
    }
  }
  context.err.Status("");
  if (const int code = context.Written(); code != kComplete) {
    return code;
  }
  const std::optional<Stream::End> end = stream.end();
  bool complete = true;
  if (end.has_value() && !end->status.ok()) {
    context.Fail(end->status);
    why = "not complete";
    complete = false;
  } else if (end.has_value()) {
    why = Reason(end->fin.reason());
    complete = end->fin.reason() != v1::Fin::REASON_AGENT_STOPPING;
  }
  context.Say(
      fmt::format("{}; --from after:{} goes on here", why, CursorText(observation->cursor())));
  return !complete ? kError : stream.missed() ? kMissed : kComplete;
}

}  // namespace

void AddTail(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "tail",
      "Shows what happens to children: all, or those named until they have closed.\n"
      "Its end, on standard error, says where another tail goes on. Exits with 4 if it missed "
      "anything.");
  AddChildArgument(*command, options->children);
  command->add_option("--from", options->from, "Where to begin; default: latest")
      ->type_name("earliest|latest|last:N|after:CURSOR")
      ->check(Check(ParseStart));
  command
      ->add_option("--direction", options->direction,
                   "Only messages, only those from a child or to it")
      ->type_name("from|to")
      ->check(Check(ParseDirection));
  std::string kinds;
  for (const std::string& word : KindWords()) {
    kinds += (kinds.empty() ? "" : "|") + word;
  }
  command->add_option("--kind", options->kinds, "Only events of this kind; repeatable")
      ->type_name(kinds)
      ->allow_extra_args(false)
      ->check(Check(ParseKind));
  command->add_flag("--json", options->json,
                    "One object a line, in protobuf's JSON mapping, a message as it is under "
                    "\"message\"");
  command->add_option("--max-events", options->events_max, "End after N events")
      ->type_name("N")
      ->check(Check(ParseCount));
  command->add_option("--for", options->duration, "End after this time: 500ms, 10s, 5m, 1h")
      ->type_name("DURATION")
      ->check(Check(ParseDuration));
  command->callback([options, &context] { context.exit_code = Tail(*options, context); });
}

}  // namespace deka::dekactl
