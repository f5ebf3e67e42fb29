#include "tests/validator/verdict.h"

#include "fmt/format.h"

namespace deka::validator {
namespace {

// In the order of Check.
constexpr CheckInfo kInfos[] = {
    {1, "child-sequence-dense", "events"},
    {2, "sequence-dense", "events, in histories known to the end"},
    {2, "sequence-grows", "events on streams"},
    {2, "same-event", "events shown to more than one observer"},
    {2, "payload-cut", "payloads that were cut"},
    {3, "time", "events"},
    {4, "started-first", "children"},
    {4, "closed-last", "children"},
    {5, "written-by-child", "frames that a child says it wrote"},
    {5, "output-by-child", "lines that a child says it printed"},
    {6, "last-words", "children whose last words are known"},
    {6, "last-output", "children that printed something"},
    {6, "own-end", "ends of processes by themselves"},
    {7, "still-held", "channels that outlived their process"},
    {8, "answer-after-question", "frames written after something was read"},
    {9, "attach-order", "pairs of sends of one Attach"},
    {9, "call-order", "sends that began after other answers"},
    {9, "frames-whole", "messages read next to one of another sender"},
    {10, "signalled-first", "signals whose effect is known"},
    {11, "written", "answers WRITTEN"},
    {11, "read-by-child", "messages that a child read"},
    {12, "accepted", "answers ACCEPTED, and messages told as undelivered"},
    {12, "accepted-order", "sends that began after others were accepted"},
    {13, "refused", "sends that were refused"},
    {14, "send-once", "request ids that were used again"},
    {14, "fork-once", "forks whose request id was used again"},
    {14, "not-remembered", "repeats that the agent did not know"},
    {15, "nothing-silent", "events that had to be shown or named"},
    {15, "shown-once", "events shown"},
    {15, "fits", "events shown through a filter"},
    {15, "gap", "gaps"},
    {15, "forgotten-gap", "gaps of children that were forgotten"},
    {16, "resumed", "streams that began after a cursor"},
    {16, "first-gaps", "gaps that such a stream began with"},
    {16, "fail-on-gap", "streams refused because of a gap"},
    {17, "snapshot", "children in snapshots"},
    {17, "snapshot-then-events", "children whose next event followed the snapshot"},
    {17, "later-child", "children that were started later"},
    {18, "fin-cursor", "cursors of Fin"},
    {18, "fin-reason", "reasons of Fin"},
    {18, "stop-shows-all", "streams that the agent's stop ended"},
    {18, "heartbeat", "cursors of heartbeats"},
    {19, "paused-observer", "observers that did not read"},
    {20, "lossless", "streams that must not lose anything"},
    {21, "own-log", "children that fit into their log beside others that did not"},
};
static_assert(std::size(kInfos) == kChecks);

}  // namespace

const CheckInfo& InfoOf(Check check) { return kInfos[static_cast<size_t>(check)]; }

std::string ExercisedText(const std::array<int64_t, kChecks>& exercised) {
  std::string text = fmt::format("{:>7}  {:<24}{:>12}  of\n", "promise", "check", "exercised");
  for (size_t check = 0; check < kChecks; ++check) {
    const CheckInfo& info = kInfos[check];
    text += fmt::format("{:>7}  {:<24}{:>12}  {}\n", info.promise, info.name, exercised[check],
                        info.subject);
  }
  return text;
}

}  // namespace deka::validator
