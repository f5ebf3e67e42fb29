#include "agent/names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <utility>

#include "agent/fingerprint.h"
#include "ipc/error.h"

namespace deka::agent {
namespace {

using ipc::Reason;
using testing::HasSubstr;

std::string Long(size_t size) { return std::string(size, 'x'); }

TEST(NamesTest, Ids) {
  for (const std::string& id :
       {std::string("a"), std::string("0-"), std::string("build-7"), Long(63)}) {
    EXPECT_TRUE(IsId(id)) << id;
  }
  for (const std::string& id :
       {std::string(), std::string("-a"), std::string("A"), std::string("a_b"), std::string("a.b"),
        std::string("\xC3\xA4"), Long(64)}) {
    EXPECT_FALSE(IsId(id)) << id;
  }
}

TEST(NamesTest, DisplayNames) {
  for (const std::string& name : {std::string(), std::string("A.b_c-9"), Long(63)}) {
    EXPECT_TRUE(ValidateDisplayName(name).ok()) << name;
  }
  for (const std::string& name : {std::string("-"), std::string(".a"), std::string("a b"),
                                  std::string("a/b"), std::string("a\n"), Long(64)}) {
    const absl::Status status = ValidateDisplayName(name);
    EXPECT_EQ(ipc::ReasonOf(status), Reason::kInvalidArgument) << name;
    EXPECT_EQ(ipc::MetadataOf(status, "field"), "display_name");
  }
}

TEST(NamesTest, AHostsNameIsMadeToFit) {
  EXPECT_EQ(IdFromHost("Build_7.example.org"), "build-7-example-org");
  EXPECT_EQ(IdFromHost("..x"), "x");
  EXPECT_EQ(IdFromHost("..."), "localhost");
  EXPECT_EQ(IdFromHost(""), "localhost");
  EXPECT_EQ(IdFromHost(Long(64)), Long(63));
}

TEST(NamesTest, RandomIdsAreIdsAndDiffer) {
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = RandomId();
    EXPECT_TRUE(IsId(id)) << id;
    EXPECT_TRUE(ids.insert(id).second) << id;
  }
}

TEST(NamesTest, AChildIsNamedInFullOrInShort) {
  for (const char* name : {"agents/here/children/a.B", "agents/-/children/a.B", "a.B"}) {
    EXPECT_EQ(ParseChildName(name, "here", Wildcard::kRefused).value(), "a.B") << name;
  }
  EXPECT_EQ(ParseChildName("agents/-/children/-", "here", Wildcard::kAccepted).value(), "-");
}

TEST(NamesTest, WhatIsNoChildsNameIsRefused) {
  for (const std::string& name :
       {std::string(), std::string("-"), std::string("agents/here/children/-"), std::string("a/b"),
        std::string("agents/here"), std::string("agents/here/children/"),
        std::string("agents/here/children/a/b"), std::string("agents/UP/children/a"),
        std::string("agents//children/a"), std::string("children/a"), std::string("a\0b", 3),
        std::string("\xFF"), Long(64)}) {
    EXPECT_EQ(ipc::ReasonOf(ParseChildName(name, "here", Wildcard::kRefused).status()),
              Reason::kInvalidArgument)
        << name;
  }
  const absl::Status other =
      ParseChildName("agents/there/children/a", "here", Wildcard::kRefused).status();
  EXPECT_EQ(ipc::ReasonOf(other), Reason::kChildNotFound);
  EXPECT_THAT(other.message(), HasSubstr("here"));
  // However long and strange it is, the message stays short and is UTF-8.
  const absl::Status strange =
      ParseChildName(std::string(100'000, '\xFF'), "here", Wildcard::kRefused).status();
  EXPECT_LT(strange.message().size(), 1000u);
}

TEST(NamesTest, Parents) {
  EXPECT_TRUE(ValidateParent("agents/here", "here").ok());
  EXPECT_TRUE(ValidateParent("agents/-", "here").ok());
  for (const char* parent :
       {"", "here", "agents/", "agents/there", "agents/here/", "agents/here/children/a"}) {
    EXPECT_EQ(ipc::ReasonOf(ValidateParent(parent, "here")), Reason::kInvalidArgument) << parent;
  }
}

TEST(NamesTest, Agents) {
  EXPECT_TRUE(ValidateAgentName("agents/here", "here").ok());
  EXPECT_TRUE(ValidateAgentName("agents/-", "here").ok());
  for (const char* name : {"", "here", "-", "agents/", "agents/Here", "agents/here/",
                           "agents/here/children/a", "/agents/here"}) {
    const absl::Status malformed = ValidateAgentName(name, "here");
    EXPECT_EQ(ipc::ReasonOf(malformed), Reason::kInvalidArgument) << name;
    EXPECT_EQ(ipc::MetadataOf(malformed, "field"), "name");
  }
  const absl::Status other = ValidateAgentName("agents/there", "here");
  EXPECT_EQ(ipc::ReasonOf(other), Reason::kAgentNotFound);
  EXPECT_EQ(ipc::MetadataOf(other, "agent"), "here");
  EXPECT_THAT(other.message(), HasSubstr("there"));
}

TEST(NamesTest, LabelsAreLimited) {
  std::map<std::string, std::string> labels;
  for (size_t i = 0; i < kLabelsMax; ++i) labels["k" + std::to_string(i)] = "v";
  EXPECT_TRUE(ValidateLabels(labels).ok());
  labels["one more"] = "v";
  EXPECT_EQ(ipc::ReasonOf(ValidateLabels(labels)), Reason::kInvalidArgument);
  EXPECT_TRUE(ValidateLabels({{Long(63), Long(63)}, {"empty", ""}}).ok());
  const std::map<std::string, std::string> refused[] = {
      {{"", "v"}}, {{Long(64), "v"}}, {{"k", Long(64)}}, {{"\xFF", "v"}}, {{"k", "\xFF"}}};
  for (const auto& some : refused) {
    EXPECT_EQ(ipc::ReasonOf(ValidateLabels(some)), Reason::kInvalidArgument);
  }
}

TEST(NamesTest, RequestIdsAndClientsAreLimited) {
  EXPECT_TRUE(ValidateRequestId(Long(64)).ok());
  EXPECT_EQ(ipc::MetadataOf(ValidateRequestId(Long(65)), "field"), "request_id");
  EXPECT_TRUE(ValidateClient(Long(63)).ok());
  EXPECT_EQ(ipc::MetadataOf(ValidateClient(Long(64)), "field"), "client");
}

TEST(NamesTest, ControlCharactersAreNamedAndRefused) {
  for (const std::string& text : {std::string("\0", 1), std::string("a\nb"), std::string("\x1B[2J"),
                                  std::string("\x1F"), std::string("\x7F"), std::string("\xC2\x80"),
                                  std::string("a\xC2\x9F"), std::string("\xE2\x80\xAE")}) {
    EXPECT_TRUE(HasControl(text));
    const std::pair<absl::Status, const char*> refused[] = {
        {ValidateRequestId(text), "request_id"},     {ValidateClient(text), "client"},
        {ValidateLabels({{text, "v"}}), "labels"},   {ValidateLabels({{"k", text}}), "labels"},
        {ValidateDisplayName(text), "display_name"},
    };
    for (const auto& [status, field] : refused) {
      EXPECT_EQ(ipc::ReasonOf(status), Reason::kInvalidArgument) << field;
      EXPECT_EQ(ipc::MetadataOf(status, "field"), field);
      EXPECT_FALSE(HasControl({status.message().data(), status.message().size()})) << status;
    }
    const absl::Status name = ParseChildName(text, "here", Wildcard::kRefused).status();
    EXPECT_FALSE(HasControl({name.message().data(), name.message().size()})) << name;
    EXPECT_FALSE(HasControl(*ipc::MetadataOf(name, "name")));
  }
  // What only looks like one.
  for (const std::string& text : {std::string(" ~"), std::string("\xC2\xA0"),
                                  std::string("\xC3\x84"), std::string("\xE2\x82\xAC")}) {
    EXPECT_TRUE(ValidateClient(text).ok()) << text;
    EXPECT_TRUE(ValidateLabels({{text, text}}).ok()) << text;
  }
}

TEST(FingerprintTest, DependsOnEachByteAndOnTheSeed) {
  std::set<uint64_t> numbers;
  std::string bytes(40, '\0');
  EXPECT_EQ(Fingerprint(bytes), Fingerprint(bytes));
  numbers.insert(Fingerprint(bytes));
  for (char& byte : bytes) {
    byte = 1;
    EXPECT_TRUE(numbers.insert(Fingerprint(bytes)).second);
    byte = 0;
  }
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_TRUE(numbers.insert(Fingerprint(std::string_view(bytes).substr(0, size))).second);
  }
  EXPECT_TRUE(numbers.insert(Fingerprint(bytes, 1)).second);
}

}  // namespace
}  // namespace deka::agent
