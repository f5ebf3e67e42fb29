#include "sdk/examples/demo/transcript.h"

#include <fmt/format.h>

#include <cstddef>
#include <iterator>
#include <string_view>
#include <utility>

#include "google/protobuf/util/time_util.h"
#include "sdk/dekactl/output.h"

namespace deka::examples {
namespace {

constexpr std::string_view kVisitor = "visitor";
constexpr dekactl::Color kChildColours[] = {dekactl::Color::kCyan, dekactl::Color::kMagenta};
constexpr size_t kWhoWidth = 19;  // "visitor -> a child"

// "who", "what", to stand in two columns.
std::pair<std::string, std::string> Describe(const v1::Event& event, const std::string& child) {
  switch (event.kind_case()) {
    case v1::Event::kStarted:
      return {child, fmt::format("started, pid {}", event.started().child().pid())};
    case v1::Event::kToChild:
      return {fmt::format("{} -> {}", kVisitor, child), event.json()};
    case v1::Event::kFromChild:
      return {fmt::format("{} -> {}", child, kVisitor), event.json()};
    case v1::Event::kOutput:
      return {child, fmt::format("prints: {}", event.text())};
    case v1::Event::kError:
      return {child, fmt::format("wrote what is no message: {}", event.error().message())};
    case v1::Event::kUndelivered:
      return {child, fmt::format("was not sent a message: {}", event.undelivered().message())};
    case v1::Event::kSignalled:
      return {child, fmt::format("was sent signal {}", event.signalled().signal())};
    case v1::Event::kDisconnected:
      return {child, event.disconnected().by() == v1::Disconnected::BY_CALLER
                         ? fmt::format("disconnected by the {}", kVisitor)
                         : "disconnected"};
    case v1::Event::kExited: {
      const v1::ExitStatus& status = event.exited().status();
      return {child, status.has_code() ? fmt::format("exited with code {}", status.code())
                                       : fmt::format("ended: {}", status.ShortDebugString())};
    }
    case v1::Event::kClosed:
      return {child, "closed: nothing more will happen to it"};
    case v1::Event::KIND_NOT_SET:
      break;
  }
  return {child, "did something that this program does not know"};
}

}  // namespace

Transcript::Transcript(std::FILE* out, std::map<std::string, std::string> names)
    : out_(out), coloured_(dekactl::Output(fileno(out)).colored()), names_(std::move(names)) {
  fmt::print(out_, "{:>4}  {:>8}  {:<{}}  {}\n", "#", "time", "who", kWhoWidth, "what");
}

void Transcript::Show(const v1::Event& event) {
  const auto name = names_.find(event.child());
  const int64_t now_us = google::protobuf::util::TimeUtil::TimestampToMicroseconds(event.time());
  if (start_us_ == 0) start_us_ = now_us;

  const auto [who, what] = Describe(event, name == names_.end() ? event.child() : name->second);
  const std::string when = fmt::format("{:>4}  {:6.3f} s", fmt::format("#{}", event.sequence()),
                                       static_cast<double>(now_us - start_us_) / 1e6);
  const auto index = static_cast<size_t>(std::distance(names_.begin(), name));
  fmt::print(out_, "{}  {}  {}\n", Paint(coloured_, dekactl::Color::kDim, when),
             Paint(coloured_, kChildColours[index % std::size(kChildColours)],
                   fmt::format("{:<{}}", who, kWhoWidth)),
             dekactl::Printable(what));
  std::fflush(out_);
}

}  // namespace deka::examples
