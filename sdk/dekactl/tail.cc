#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "google/protobuf/util/time_util.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/cursor_text.h"
#include "sdk/dekactl/progress.h"
#include "sdk/dekactl/stream.h"
#include "sdk/dekactl/words.h"

namespace deka::dekactl {
namespace {

struct Options {
  std::vector<std::string> children;
  std::string from = "latest";
  std::string since;
  std::vector<std::string> labels;
  std::string direction;
  std::vector<std::string> kinds;
  std::vector<std::string> where;
  std::string payload = "full";
  int64_t rate = 0;
  std::string when_slow;
  std::string hold;
  bool json = false;
  int64_t events_max = 0;
  std::string duration;
};

google::protobuf::Duration ToDuration(const std::string& word) {
  return google::protobuf::util::TimeUtil::MillisecondsToDuration(ParseDuration(word)->count());
}

v1::ObserveRequest Request(const Options& options) {
  v1::ObserveRequest request;
  request.mutable_filter()->mutable_children()->Assign(options.children.begin(),
                                                       options.children.end());
  for (const std::string& label : options.labels) {
    auto [key, value] = *ParsePair(label);
    (*request.mutable_filter()->mutable_labels())[key] = value;
  }
  v1::Observation& observation = *request.mutable_observation();
  *observation.mutable_start() = *ParseStart(options.from);
  if (!options.since.empty()) {
    *observation.mutable_start()->mutable_since() =
        *ParseSince(options.since, std::chrono::system_clock::now());
  }
  observation.set_until_closed(!options.children.empty());
  observation.set_events_max(options.events_max);
  for (const std::string& kind : options.kinds) {
    observation.add_kinds(*ParseKind(kind));
  }
  if (!options.direction.empty()) {
    observation.set_direction(*ParseDirection(options.direction));
  }
  for (const std::string& where : options.where) {
    *observation.add_where() = *ParseWhere(where);
  }
  // Direction and content are those of messages, so without a kind they ask for messages.
  if (options.kinds.empty() && (!options.direction.empty() || !options.where.empty())) {
    observation.add_kinds(v1::EVENT_KIND_MESSAGE);
  }
  if (const std::optional<int64_t> bytes = *ParsePayload(options.payload); bytes.has_value()) {
    observation.set_payload_bytes_max(*bytes);
  }
  observation.set_events_per_second_max(options.rate);
  if (!options.when_slow.empty()) {
    observation.set_when_slow(*ParseSlow(options.when_slow));
  }
  if (!options.hold.empty()) {
    *observation.mutable_hold_max() = ToDuration(options.hold);
  }
  if (!options.duration.empty()) {
    *observation.mutable_duration() = ToDuration(options.duration);
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
  absl::StatusOr<Observation> observation = [&] {
    const Progress progress(context.err, "waiting for the agent");
    return client->Observe(Request(options), stream.Observer());
  }();
  if (!observation.ok()) {
    return context.Fail(observation.status());
  }
  context.Hint("watching; Ctrl-C ends it");
  bool interrupted = false;
  bool reader_gone = false;
  while (!interrupted && !reader_gone && !stream.end().has_value()) {
    const Waiter::Event event = waiter.Wait({.reader = true});
    interrupted = event == Waiter::Event::kInterrupted;
    reader_gone = event == Waiter::Event::kReaderGone || context.out.error() != 0;
  }
  observation->Stop();
  context.err.Status("");
  if (reader_gone || context.out.error() != 0) {
    // How much of it was read is not known, so there is no place to tell.
    const int written = context.Written();
    return written == kComplete && stream.missed() ? kMissed : written;
  }
  const std::string place =
      fmt::format("--from after:{} goes on here", CursorText(observation->cursor()));
  const std::optional<Stream::End> end = stream.end();
  if (end.has_value() && ErrorReason(end->status) == "TOO_SLOW") {
    context.Say(
        fmt::format("too slow: the log has turned over before all of it was read; {}", place));
    return kMissed;
  }
  if (end.has_value() && !end->status.ok()) {
    return context.Fail(end->status, fmt::format("not complete, {}: ", place));
  }
  context.Say(
      fmt::format("{}; {}", end.has_value() ? Reason(end->fin.reason()) : "interrupted", place));
  if (end.has_value() && end->fin.reason() == v1::Fin::REASON_AGENT_STOPPING) {
    return kError;
  }
  return stream.missed() ? kMissed : kComplete;
}

}  // namespace

void AddTail(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "tail",
      "Shows what happens to children\n\n"
      "To all, those that come later too, or to those named until they have closed. Its last line, "
      "on standard error, says where another tail goes on.");
  AddChildArgument(*command, options->children);
  CLI::Option* from =
      command
          ->add_option("--from", options->from,
                       "Where to begin: earliest, latest (the default), last:N or after:CURSOR")
          ->type_name("earliest|latest|last:N|after:CURSOR")
          ->option_text("PLACE")
          ->check(Check(ParseStart));
  command
      ->add_option("--since", options->since,
                   "Begin at this time, 2026-07-05T14:30:00Z, or this long ago, 10m")
      ->type_name("TIME")
      ->excludes(from)
      ->check(Check([](std::string_view word) {
        return ParseSince(word, std::chrono::system_clock::now());
      }));
  command->add_option("--label", options->labels, "Only children that have this label; repeatable")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->check(Check(ParsePair));
  command
      ->add_option("--direction", options->direction,
                   "Only messages, only those from a child or to it")
      ->type_name("from|to")
      ->check(Check(ParseDirection));
  command
      ->add_option(
          "--kind", options->kinds,
          fmt::format("Only events of this kind; repeatable: {}", fmt::join(KindWords(), ", ")))
      ->type_name(fmt::format("{}", fmt::join(KindWords(), "|")))
      ->option_text("KIND ...")
      ->allow_extra_args(false)
      ->check(Check(ParseKind));
  command
      ->add_option("--where", options->where,
                   "Only messages in which VALUE stands at POINTER, a JSON Pointer, or, without a "
                   "VALUE, anything does: /user/name=bob, /items/0. A VALUE that is no JSON is a "
                   "string. Repeatable: all must fit")
      ->type_name("POINTER[=VALUE]")
      ->allow_extra_args(false)
      ->check(Check(ParseWhere));
  command
      ->add_option("--payload", options->payload,
                   "How much to show of a message or a line of output: 200, 4k; default: full")
      ->type_name("full|none|BYTES")
      ->check(Check(ParsePayload));
  command
      ->add_option("--rate", options->rate,
                   "Show at most N events a second; the others are shown as missed")
      ->type_name("N")
      ->check(Check(ParseCount));
  command
      ->add_option("--when-slow", options->when_slow,
                   "If the log turns over before all of it is read here: gap shows what was missed "
                   "and goes on (the default), disconnect ends with 4, block holds the child back "
                   "instead, so that nothing is missed")
      ->type_name("gap|disconnect|block")
      ->check(Check(ParseSlow));
  command
      ->add_option("--hold", options->hold,
                   "How long --when-slow block may hold a child back at once, at most 8s; "
                   "default: 5s")
      ->type_name("DURATION")
      ->check(Check(ParseHold));
  command->add_flag("--json", options->json,
                    "One object a line, in protobuf's JSON mapping; a message as it is under "
                    "\"message\", what --payload has cut under \"payloadCut\"");
  command->add_option("--max-events", options->events_max, "End after N events")
      ->type_name("N")
      ->check(Check(ParseCount));
  command->add_option("--for", options->duration, "End after this time: 500ms, 10s, 5m, 1h")
      ->type_name("DURATION")
      ->check(Check(ParseDuration));
  command->callback([options, &context] {
    CheckKeys("--label", options->labels);
    CheckWhere("--where", options->where);
    if (!options->hold.empty() && options->when_slow != "block") {
      throw CLI::ValidationError(
          "--hold", "nothing is held back without --when-slow block; write both, or neither");
    }
    context.exit_code = Tail(*options, context);
  });
}

}  // namespace deka::dekactl
