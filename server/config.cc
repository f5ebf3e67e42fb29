#include "server/config.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "ipc/error.h"
#include "ipc/utf8.h"
#include "server/listener.h"

namespace deka::server {

namespace v1 = ::deka::bridge::v1;
using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;
using google::protobuf::io::ArrayInputStream;
using google::protobuf::io::ErrorCollector;
using google::protobuf::io::Tokenizer;
using ipc::MakeError;
using ipc::Reason;

namespace {

absl::Status ConfigError(const std::string& where, std::string_view what,
                         const ipc::ErrorMetadata& metadata = {}) {
  return MakeError(Reason::kConfigInvalid, fmt::format("{}: {}", where, what), metadata);
}

// What the parser says, which sometimes has no end.
std::string Sentence(const std::string& text) { return text + (text.ends_with('.') ? "" : "."); }

std::string Place(const std::string& file, int line, int column) {
  return fmt::format("{}:{}:{}", file, line + 1, column + 1);
}

// The first error alone counts: later ones follow from it.
class FirstError final : public ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    if (found_) return;
    found_ = true;
    line_ = line;
    column_ = column;
    message_ = message;
  }

  int line() const { return line_; }
  int column() const { return column_; }
  const std::string& message() const { return message_; }

 private:
  bool found_ = false;
  int line_ = 0;
  int column_ = 0;
  std::string message_;
};

class NoErrors final : public ErrorCollector {
 public:
  void AddError(int, int, const std::string&) override {}
};

// The field that a text in protobuf's format has come to: `children[1].env[0].value`.
class FieldPath {
 public:
  void Take(const Tokenizer::Token& token) {
    Level& level = levels_.back();
    if (token.text == "{" || token.text == "<") {
      const FieldDescriptor* field = level.field();
      levels_.emplace_back(field == nullptr ? nullptr : field->message_type());
    } else if (token.text == "}" || token.text == ">") {
      if (levels_.size() > 1) levels_.pop_back();
      Level& around = levels_.back();
      around.complete = true;
      if (!around.in_list) around.name.clear();
    } else if (token.text == ":") {
      level.complete = false;
    } else if (token.text == "[") {
      level.in_list = !level.name.empty();
    } else if (token.text == "]") {
      level.in_list = false;
      level.complete = true;
    } else if (token.text == "," && level.in_list) {
      ++level.count[level.name];
    } else if (token.type == Tokenizer::TYPE_IDENTIFIER && level.complete && !level.in_list) {
      level.name = token.text;
      ++level.count[level.name];
    } else if (token.text != "-") {
      level.complete = true;
    }
  }

  // Empty if it has come to none.
  std::string ToString() const {
    std::string path;
    for (const Level& level : levels_) {
      if (level.name.empty()) continue;
      path += (path.empty() ? "" : ".") + level.name;
      const FieldDescriptor* field = level.field();
      if (field != nullptr && field->is_repeated()) {
        path += fmt::format("[{}]", level.count.at(level.name) - 1);
      }
    }
    return path;
  }

 private:
  // The fields of one message.
  struct Level {
    explicit Level(const Descriptor* type) : message(type) {}

    const FieldDescriptor* field() const {
      return message == nullptr ? nullptr : message->FindFieldByName(name);
    }

    const Descriptor* message;         // null: of a field that is not known
    std::map<std::string, int> count;  // how often each has come
    std::string name;                  // of the one that is read
    bool in_list = false;              // of its values
    bool complete = true;              // it has its value: an identifier begins another one
  };

  std::vector<Level> levels_{Level(v1::AgentConfig::descriptor())};
};

// Where something went wrong, and the field that was being read; empty if none was.
struct Spot {
  int line;
  int column;
  std::string field;
};

// Of an error that the parser reports.
Spot SpotOf(const FirstError& error, const std::string& text) {
  // These are noticed when the parser has gone on to the next token.
  const std::string& message = error.message();
  const bool of_token_before = message.starts_with("Message type") ||
                               message.starts_with("Unknown enumeration value") ||
                               message.starts_with("Non-repeated field");

  ArrayInputStream input(text.data(), static_cast<int>(text.size()));
  NoErrors errors;
  Tokenizer tokens(&input, &errors);
  tokens.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
  FieldPath path;
  Spot spot{error.line(), error.column(), ""};
  const auto end = std::pair(error.line(), error.column());
  while (tokens.Next()) {
    const Tokenizer::Token& token = tokens.current();
    const auto place = std::pair(token.line, token.column);
    if (of_token_before ? place >= end : place > end) break;
    if (of_token_before) std::tie(spot.line, spot.column) = place;
    path.Take(token);
  }
  spot.field = path.ToString();
  return spot;
}

// The path of the first string that protobuf may not carry.
std::optional<std::string> FindBadText(const Message& message, const std::string& path) {
  const auto* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const int count = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const std::string here =
          path + field->name() + (field->is_repeated() ? fmt::format("[{}]", i) : "");
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        const Message& nested = field->is_repeated()
                                    ? reflection->GetRepeatedMessage(message, field, i)
                                    : reflection->GetMessage(message, field);
        if (auto found = FindBadText(nested, here + "."); found) return found;
      } else if (field->type() == FieldDescriptor::TYPE_STRING) {
        const std::string text = field->is_repeated()
                                     ? reflection->GetRepeatedString(message, field, i)
                                     : reflection->GetString(message, field);
        if (!ipc::IsUtf8(text)) return here;
      }
    }
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<Config> Config::Read(const std::string& path) {
  const auto failed = [&](int error) {
    return ConfigError(path, fmt::format("Can't read it: {}. Name another file with --config.",
                                         std::generic_category().message(error)));
  };
  // A FIFO without a writer must not hang the start.
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return failed(errno);
  const absl::Cleanup closed = [descriptor] { close(descriptor); };
  struct stat status = {};
  if (fstat(descriptor, &status) != 0) return failed(errno);
  if (S_ISDIR(status.st_mode)) return failed(EISDIR);
  fcntl(descriptor, F_SETFL, 0);  // one that has a writer is waited for
  std::string text;
  char buffer[64 << 10];
  for (;;) {
    const ssize_t count = read(descriptor, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return failed(errno);
    if (count == 0) break;
    text.append(buffer, static_cast<size_t>(count));
    if (text.size() > kFileBytesMax) {
      return ConfigError(path, fmt::format("It is longer than {} bytes. A configuration is a "
                                           "textproto of deka.bridge.v1.AgentConfig.",
                                           kFileBytesMax));
    }
  }
  return Parse(text, path);
}

absl::StatusOr<Config> Config::Parse(const std::string& text, const std::string& file) {
  Config config;
  config.file_ = file;
  FirstError error;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.WriteLocationsTo(config.places_.get());
  if (!parser.ParseFromString(text, &config.proto_)) {
    const Spot spot = SpotOf(error, text);
    const std::string place = Place(file, spot.line, spot.column);
    return ConfigError(spot.field.empty() ? place : fmt::format("{}: {}", place, spot.field),
                       Sentence(error.message()), {{"field", spot.field}});
  }
  if (absl::Status status = config.Check(); !status.ok()) return status;
  return config;
}

absl::Status Config::Check() {
  if (const auto field = FindBadText(proto_, "")) {
    return Error(*field, "It is not UTF-8. Write text in UTF-8, and its bytes as they are.");
  }
  for (int i = 0; i < proto_.listen_size(); ++i) {
    const absl::StatusOr<std::string> path = SocketPath(proto_.listen(i));
    if (!path.ok()) return Error(fmt::format("listen[{}]", i), path.status());
  }

  const v1::AgentLimits& asked = proto_.limits();
  const struct {
    std::string_view field;
    int64_t asked;
    size_t& limit;
  } all[] = {
      {"limits.child.message_bytes_max", asked.child().message_bytes_max(),
       limits_.message_bytes_max},
      {"limits.child.queue_bytes_max", asked.child().queue_bytes_max(), limits_.queue_bytes_max},
      {"limits.child.log_bytes_max", asked.child().log_bytes_max(), limits_.log_bytes_max},
      {"limits.logs_bytes_max", asked.logs_bytes_max(), limits_.logs_bytes_max},
      {"limits.queues_bytes_max", asked.queues_bytes_max(), limits_.queues_bytes_max},
      {"limits.children_max", asked.children_max(), limits_.children_max},
      {"limits.observers_max", asked.observers_max(), limits_.observers_max},
      {"limits.log_events_max", asked.log_events_max(), limits_.log_events_max},
      {"limits.queue_messages_max", asked.queue_messages_max(), limits_.queue_messages_max},
      {"limits.ended_children_max", asked.ended_children_max(), limits_.ended_children_max},
      {"limits.connections_max", asked.connections_max(), connections_max_},
      {"limits.write_stalled_ms_max", asked.write_stalled_ms_max(), write_stalled_ms_max_},
  };
  for (const auto& each : all) {
    if (each.asked < 0) {
      return Error(each.field,
                   fmt::format("It is {}. Give a positive number, or 0 for the default, "
                               "{}.",
                               each.asked, each.limit));
    }
    if (each.asked > 0) each.limit = static_cast<size_t>(each.asked);
  }
  return absl::OkStatus();
}

absl::Status Config::Error(std::string_view field, const absl::Status& status) const {
  std::string sentence(status.message().data(), status.message().size());
  if (const auto named = ipc::MetadataOf(status, "field")) {
    const std::string subject = fmt::format("`{}` ", *named);
    if (sentence.starts_with(subject)) sentence.replace(0, subject.size(), "It ");
  }
  return Error(field, sentence);
}

absl::Status Config::Error(std::string_view field, std::string_view what) const {
  std::string where = file_;
  const TextFormat::ParseInfoTree* places = places_.get();
  const Descriptor* message = v1::AgentConfig::descriptor();
  for (std::string_view rest = field; places != nullptr && message != nullptr && !rest.empty();) {
    std::string_view name = rest.substr(0, rest.find('.'));
    rest.remove_prefix(std::min(name.size() + 1, rest.size()));
    int index = -1;
    if (const size_t bracket = name.find('['); bracket != std::string_view::npos) {
      index = atoi(std::string(name.substr(bracket + 1)).c_str());
      name = name.substr(0, bracket);
    }
    const FieldDescriptor* descriptor = message->FindFieldByName(std::string(name));
    if (descriptor == nullptr) break;
    if (descriptor->is_repeated() && index < 0) index = 0;
    const TextFormat::ParseLocation place = places->GetLocation(descriptor, index);
    if (place.line < 0) break;
    where = Place(file_, place.line, place.column);
    message = descriptor->message_type();
    places = message == nullptr ? nullptr : places->GetTreeForNested(descriptor, index);
  }
  return ConfigError(fmt::format("{}: {}", where, field), what, {{"field", std::string(field)}});
}

}  // namespace deka::server
