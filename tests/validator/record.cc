#include "tests/validator/record.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/json_util.h>

#include <array>
#include <charconv>
#include <fstream>
#include <optional>

#include "deka/bridge/v1/agent_config.pb.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "fmt/format.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace deka::validator {
namespace {

constexpr std::array<std::pair<What, std::string_view>, 17> kWords{{
    {What::kLimits, "limits"},
    {What::kStopping, "stopping"},
    {What::kAsked, "asked"},
    {What::kAnswered, "answered"},
    {What::kEnded, "ended"},
    {What::kCancelled, "cancelled"},
    {What::kPaused, "paused"},
    {What::kResumed, "resumed"},
    {What::kGaveUp, "gave-up"},
    {What::kWrote, "wrote"},
    {What::kMayHaveWritten, "may-have-written"},
    {What::kRead, "read"},
    {What::kReadEnd, "read-end"},
    {What::kGotSignal, "got-signal"},
    {What::kForked, "forked"},
    {What::kEnds, "ends"},
}};

std::string_view WordOf(What what) {
  for (const auto& [each, word] : kWords) {
    if (each == what && !word.empty()) return word;
  }
  return "?";
}

std::optional<What> WhatOf(std::string_view word) {
  for (const auto& [what, each] : kWords) {
    if (each == word && !word.empty()) return what;
  }
  return std::nullopt;
}

// An empty message of this type, or null. ErrorInfo and RetryInfo, which a Status may hold, are
// linked in here, too.
std::unique_ptr<google::protobuf::Message> NewMessage(const std::string& type) {
  static const bool linked = google::rpc::ErrorInfo::descriptor() != nullptr &&
                             bridge::v1::AgentLimits::descriptor() != nullptr;
  if (!linked) return nullptr;
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  for (const char* package : {"deka.bridge.v1.", "google.rpc."}) {
    if (const auto* descriptor = pool->FindMessageTypeByName(package + type)) {
      return std::unique_ptr<google::protobuf::Message>(
          google::protobuf::MessageFactory::generated_factory()->GetPrototype(descriptor)->New());
    }
  }
  return nullptr;
}

// Takes the first word off.
std::string_view TakeWord(std::string_view& text) {
  const size_t end = text.find(' ');
  const std::string_view word = text.substr(0, end);
  text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  return word;
}

std::optional<int64_t> ToNumber(std::string_view word) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
  return number;
}

}  // namespace

std::string ToText(const Record& record) {
  std::string text =
      fmt::format("{} {} {} {}", record.moment, record.party, record.call, WordOf(record.what));
  if (record.body == nullptr) return text;
  std::string json;
  if (const auto status = google::protobuf::util::MessageToJsonString(*record.body, &json);
      !status.ok()) {
    json = fmt::format("? {}", status.ToString());
  }
  return fmt::format("{} {} {}", text, record.body->GetDescriptor()->name(), json);
}

absl::StatusOr<Record> ParseRecord(std::string_view line) {
  Record record;
  std::string_view rest = line;
  const std::optional<int64_t> moment = ToNumber(TakeWord(rest));
  record.party = TakeWord(rest);
  const std::optional<int64_t> call = ToNumber(TakeWord(rest));
  const std::optional<What> what = WhatOf(TakeWord(rest));
  if (!moment || !call || !what || record.party.empty()) {
    return absl::InvalidArgumentError("it does not begin with MOMENT PARTY CALL WHAT");
  }
  record.moment = *moment;
  record.call = *call;
  record.what = *what;
  if (rest.empty()) return record;
  const std::string type(TakeWord(rest));
  std::unique_ptr<google::protobuf::Message> body = NewMessage(type);
  if (body == nullptr) return absl::InvalidArgumentError(fmt::format("no type is called {}", type));
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // recorded by a later version
  if (const auto status = google::protobuf::util::JsonStringToMessage({rest.data(), rest.size()},
                                                                      body.get(), options);
      !status.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("its JSON is no {}: {}", type, status.ToString()));
  }
  record.body = std::move(body);
  return record;
}

absl::Status Save(const Recording& recording, std::string_view comment, const std::string& path) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << "# " << comment << "\n";
  for (const Record& record : recording) file << ToText(record) << "\n";
  file.flush();
  return file ? absl::OkStatus()
              : absl::UnavailableError(fmt::format("{} could not be written", path));
}

absl::StatusOr<Recording> Load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(fmt::format("{} could not be opened", path));
  Recording recording;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty() || line.starts_with('#')) continue;
    absl::StatusOr<Record> record = ParseRecord(line);
    if (!record.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("{}:{}: {}", path, number, std::string(record.status().message())));
    }
    recording.push_back(*std::move(record));
  }
  return recording;
}

}  // namespace deka::validator
