#include "agent/names.h"

#include <sys/random.h>

#include <algorithm>

#include "fmt/format.h"
#include "ipc/error.h"
#include "ipc/log.h"
#include "ipc/utf8.h"

namespace deka::agent {
namespace {

bool IsLower(char c) { return c >= 'a' && c <= 'z'; }
bool IsUpper(char c) { return c >= 'A' && c <= 'Z'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsIdCharacter(char c) { return IsLower(c) || IsDigit(c) || c == '-'; }

// What a message may show of a name that can be anything.
std::string Shown(std::string_view name) {
  constexpr size_t kShownBytesMax = 200;
  return ipc::Escaped(name, kShownBytesMax) + (name.size() > kShownBytesMax ? "..." : "");
}

absl::Status Malformed(std::string_view name) {
  return ipc::MakeError(
      ipc::Reason::kInvalidArgument,
      fmt::format(
          "\"{}\" is no child's name. Give agents/AGENT/children/CHILD, an id, or a display "
          "name.",
          Shown(name)),
      {{"name", Shown(name)}});
}

// The part of `name` behind `prefix`, up to the next `/`, which it is shortened to.
bool TakePart(std::string_view& name, std::string_view prefix, std::string_view& part) {
  if (!name.starts_with(prefix)) return false;
  name.remove_prefix(prefix.size());
  part = name.substr(0, name.find('/'));
  name.remove_prefix(part.size());
  return true;
}

// The part of an agent's name that says which one: an id, or `-`. kInvalidArgument names `field`.
absl::StatusOr<std::string_view> ParseAgentName(std::string_view field, std::string_view name,
                                                std::string_view agent) {
  std::string_view rest = name, named_agent;
  if (!TakePart(rest, "agents/", named_agent) || !rest.empty() ||
      (named_agent != "-" && !IsId(named_agent))) {
    return InvalidField(
        field, fmt::format("is \"{}\"; it must be agents/{} or agents/-.", Shown(name), agent));
  }
  return named_agent;
}

absl::Status ValidateText(std::string_view field, std::string_view text, size_t bytes_max) {
  if (text.size() > bytes_max) {
    return InvalidField(
        field, fmt::format("has {} bytes; at most {} are allowed.", text.size(), bytes_max));
  }
  if (HasControl(text)) {
    return InvalidField(field,
                        fmt::format("is \"{}\"; it may hold no control characters.", Shown(text)));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsId(std::string_view id) {
  return !id.empty() && id.size() <= kNameBytesMax && id[0] != '-' &&
         std::all_of(id.begin(), id.end(), IsIdCharacter);
}

bool IsDisplayName(std::string_view name) {
  const auto letter_or_digit = [](char c) { return IsLower(c) || IsUpper(c) || IsDigit(c); };
  return !name.empty() && name.size() <= kNameBytesMax && letter_or_digit(name[0]) &&
         std::all_of(name.begin(), name.end(), [&](char c) {
           return letter_or_digit(c) || c == '.' || c == '_' || c == '-';
         });
}

std::string IdFromHost(std::string_view host) {
  std::string id;
  for (const char c : host) {
    const char lower = IsUpper(c) ? static_cast<char>(c - 'A' + 'a') : c;
    const char fit = IsIdCharacter(lower) ? lower : '-';
    if (id.empty() && fit == '-') continue;
    if (id.size() < kNameBytesMax) id += fit;
  }
  return id.empty() ? "localhost" : id;
}

std::string RandomId() {
  constexpr std::string_view kCharacters = "abcdefghijklmnopqrstuvwxyz0123456789";
  constexpr size_t kSize = 10;
  std::string id;
  while (id.size() < kSize) {
    unsigned char bytes[16];
    if (getrandom(bytes, sizeof(bytes), 0) < 0) continue;
    for (const unsigned char byte : bytes) {
      // Each character equally often: 252 is 7 * 36.
      if (byte < 252 && id.size() < kSize) id += kCharacters[byte % kCharacters.size()];
    }
  }
  return id;
}

std::string ChildName(std::string_view agent, std::string_view child) {
  return fmt::format("agents/{}/children/{}", agent, child);
}

absl::StatusOr<std::string> ParseChildName(std::string_view name, std::string_view agent,
                                           Wildcard wildcard) {
  std::string_view child = name;
  if (name.find('/') != std::string_view::npos) {
    std::string_view rest = name, named_agent;
    if (!TakePart(rest, "agents/", named_agent) || !TakePart(rest, "/children/", child) ||
        !rest.empty() || (named_agent != "-" && !IsId(named_agent))) {
      return Malformed(name);
    }
    if (child == "-" && wildcard == Wildcard::kAccepted) return std::string(child);
    if (!IsDisplayName(child)) return Malformed(name);
    if (named_agent != "-" && named_agent != agent) {
      return ipc::MakeError(
          ipc::Reason::kChildNotFound,
          fmt::format("{} is a child of another agent; this is agent {}.", name, agent),
          {{"agent", std::string(agent)}, {"name", std::string(name)}});
    }
    return std::string(child);
  }
  // An id is a display name, too, as far as its characters go.
  if (!IsDisplayName(child)) return Malformed(name);
  return std::string(child);
}

absl::Status ValidateParent(std::string_view parent, std::string_view agent) {
  const absl::StatusOr<std::string_view> named = ParseAgentName("parent", parent, agent);
  if (!named.ok()) return named.status();
  if (*named != "-" && *named != agent) {
    return InvalidField("parent", fmt::format("names agent {}; this is agent {}.", *named, agent));
  }
  return absl::OkStatus();
}

absl::Status ValidateAgentName(std::string_view name, std::string_view agent) {
  const absl::StatusOr<std::string_view> named = ParseAgentName("name", name, agent);
  if (!named.ok()) return named.status();
  if (*named != "-" && *named != agent) {
    return ipc::MakeError(
        ipc::Reason::kAgentNotFound,
        fmt::format("There is no agent {} here; this is agent {}.", *named, agent),
        {{"agent", std::string(agent)}});
  }
  return absl::OkStatus();
}

absl::Status InvalidField(std::string_view field, std::string_view what) {
  return ipc::MakeError(ipc::Reason::kInvalidArgument, fmt::format("`{}` {}", field, what),
                        {{"field", std::string(field)}});
}

bool HasControl(std::string_view text) {
  while (!text.empty()) {
    const size_t size = std::max<size_t>(ipc::Utf8CharacterSize(text), 1);
    if (ipc::IsControl(text.substr(0, size))) return true;
    text.remove_prefix(size);
  }
  return false;
}

absl::Status ValidateDisplayName(std::string_view name) {
  if (name.empty() || IsDisplayName(name)) return absl::OkStatus();
  return InvalidField("display_name",
                      fmt::format("is \"{}\"; it may have at most {} letters, digits, `.`, `_` and "
                                  "`-`, and begins with a letter or digit.",
                                  Shown(name), kNameBytesMax));
}

absl::Status ValidateLabels(const std::map<std::string, std::string>& labels,
                            std::string_view field) {
  if (labels.size() > kLabelsMax) {
    return InvalidField(
        field, fmt::format("has {} entries; at most {} are allowed.", labels.size(), kLabelsMax));
  }
  for (const auto& [key, value] : labels) {
    if (key.empty()) return InvalidField(field, "has an empty key.");
    if (key.size() > kNameBytesMax || value.size() > kNameBytesMax) {
      return InvalidField(field, fmt::format("has the key \"{}\"; keys and values have at most {} "
                                             "bytes.",
                                             Shown(key), kNameBytesMax));
    }
    for (const std::string_view text : {std::string_view(key), std::string_view(value)}) {
      if (ipc::IsUtf8(text) && !HasControl(text)) continue;
      return InvalidField(field, fmt::format("has the key \"{}\"; keys and values are UTF-8 "
                                             "without control characters.",
                                             Shown(key)));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateRequestId(std::string_view id) {
  return ValidateText("request_id", id, kRequestIdBytesMax);
}

absl::Status ValidateClient(std::string_view client) {
  return ValidateText("client", client, kClientBytesMax);
}

}  // namespace deka::agent
