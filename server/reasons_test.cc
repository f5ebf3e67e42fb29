// The reasons of errors that the .proto files name, against those that there are.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ipc/error.h"

namespace deka::server {
namespace {

using ipc::Reason;
using testing::IsEmpty;

// No call and no event has them, only the start of an agent and our own bugs.
const std::set<std::string> kOfNoCall = {"ADDRESS_IN_USE", "ADDRESS_UNSAFE", "CONFIG_INVALID",
                                         "INTERNAL"};

std::string Read(const std::string& name) {
  std::ifstream file("proto/deka/bridge/v1/" + name);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_NE(text.str(), "") << name;
  return text.str();
}

std::vector<std::string> WordsIn(const std::string& text) {
  const std::regex word("[A-Z_]+");
  const std::sregex_token_iterator begin(text.begin(), text.end(), word);
  return {begin, std::sregex_token_iterator()};
}

std::set<std::string> AllReasons() {
  std::set<std::string> all;
  for (int i = 0; i <= static_cast<int>(Reason::kInternal); ++i) {
    all.emplace(ipc::ReasonName(static_cast<Reason>(i)));
  }
  return all;
}

using Errors = std::multimap<std::string, std::string>;

// Reason and code of each "`CODE` REASON, REASON" in a comment.
Errors ErrorsIn(const std::string& comment) {
  Errors errors;
  const std::regex entry("`([A-Z_]+)` ([A-Z_]{2,}(, [A-Z_]+)*)");
  for (std::sregex_iterator each(comment.begin(), comment.end(), entry), end; each != end; ++each) {
    for (const std::string& reason : WordsIn((*each)[2])) errors.emplace(reason, (*each)[1]);
  }
  return errors;
}

// What the service's comments say: of any method under "", of each under its name.
std::map<std::string, Errors> ErrorsOfMethods() {
  std::map<std::string, Errors> methods;
  std::istringstream text(Read("bridge_service.proto"));
  std::string comment;
  const std::regex method(" *rpc (\\w+)\\(.*");
  std::smatch match;
  for (std::string line; std::getline(text, line);) {
    if (const size_t begin = line.find_first_not_of(' ');
        begin != std::string::npos && line.compare(begin, 2, "//") == 0) {
      comment += line.substr(begin + 2);
      continue;
    }
    if (methods.empty()) {
      methods[""] = ErrorsIn(comment);
    } else if (std::regex_match(line, match, method)) {
      methods[match[1]] = ErrorsIn(comment);
    }
    comment.clear();
  }
  return methods;
}

TEST(Reasons, AreNamedWithTheirCodes) {
  for (const auto& [method, errors] : ErrorsOfMethods()) {
    for (const auto& [name, code] : errors) {
      // An error without a reason of ours has its code's name.
      if (name == code) continue;
      const std::optional<Reason> reason = ipc::ReasonFromName(name);
      ASSERT_TRUE(reason.has_value()) << method << ": there is no " << name;
      EXPECT_EQ(absl::StatusCodeToString(ipc::CodeOf(*reason)), code) << method << ": " << name;
    }
  }
}

TEST(Reasons, AreAllNamed) {
  std::set<std::string> missing = AllReasons();
  for (const auto& [method, errors] : ErrorsOfMethods()) {
    for (const auto& [name, code] : errors) {
      EXPECT_EQ(kOfNoCall.count(name), 0u) << method << ": " << name;
      missing.erase(name);
    }
  }
  const std::string events = Read("event.proto");
  const std::regex list("ErrorInfo.reason`: ([A-Z_, ]+)\\.");
  for (std::sregex_iterator each(events.begin(), events.end(), list), end; each != end; ++each) {
    for (const std::string& name : WordsIn((*each)[1])) {
      EXPECT_TRUE(ipc::ReasonFromName(name).has_value()) << name;
      missing.erase(name);
    }
  }
  for (const std::string& name : kOfNoCall) missing.erase(name);
  EXPECT_THAT(missing, IsEmpty());
}

TEST(Reasons, OfAnyMethodStandInOnePlace) {
  const auto methods = ErrorsOfMethods();
  EXPECT_EQ(methods.size(), 1u + 10u);
  for (const char* name :
       {"AGENT_STOPPING", "CONNECTIONS_LIMIT", "STALLED", "INVALID_ARGUMENT", "CHILD_AMBIGUOUS"}) {
    for (const auto& [method, errors] : methods) {
      EXPECT_EQ(errors.count(name), method.empty() ? 1u : 0u) << method << ": " << name;
    }
  }
}

}  // namespace
}  // namespace deka::server
