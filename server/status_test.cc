#include "server/status.h"

#include <gtest/gtest.h>

#include <string>

#include "google/rpc/error_details.pb.h"
#include "ipc/error.h"

namespace deka::server {
namespace {

using ipc::MakeError;
using ipc::Reason;

google::rpc::ErrorInfo InfoOf(const google::rpc::Status& status) {
  google::rpc::ErrorInfo info;
  EXPECT_GE(status.details_size(), 1);
  EXPECT_TRUE(status.details(0).UnpackTo(&info));
  return info;
}

TEST(Status, CarriesReasonAndMetadata) {
  const google::rpc::Status status =
      ToRpcStatus(MakeError(Reason::kChildAmbiguous, "two have it", {{"candidates", "a, b"}}));
  EXPECT_EQ(status.code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(status.message(), "two have it");
  EXPECT_EQ(status.details_size(), 1);
  const google::rpc::ErrorInfo info = InfoOf(status);
  EXPECT_EQ(info.domain(), "deka.bridge");
  EXPECT_EQ(info.reason(), "CHILD_AMBIGUOUS");
  ASSERT_EQ(info.metadata_size(), 1);
  EXPECT_EQ(info.metadata().at("candidates"), "a, b");
}

TEST(Status, SaysWhenToTryAgain) {
  for (const Reason reason : {Reason::kQueueFull, Reason::kAgentStopping}) {
    const google::rpc::Status status = ToRpcStatus(MakeError(reason, "later"));
    ASSERT_EQ(status.details_size(), 2);
    google::rpc::RetryInfo retry;
    ASSERT_TRUE(status.details(1).UnpackTo(&retry));
    EXPECT_EQ(retry.retry_delay().seconds() * 1000 + retry.retry_delay().nanos() / 1'000'000,
              ipc::RetryDelayMs(reason));
  }
}

TEST(Status, OkHasNoDetails) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_EQ(ToGrpcStatus(absl::OkStatus()).error_details(), "");
  EXPECT_EQ(ToRpcStatus(absl::OkStatus()).details_size(), 0);
}

TEST(Status, GivesAnErrorWithoutReasonItsCodesName) {
  const google::rpc::Status status = ToRpcStatus(absl::NotFoundError("x"));
  EXPECT_EQ(status.code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(InfoOf(status).reason(), "NOT_FOUND");
}

TEST(Status, TravelsAsGrpcExpects) {
  const grpc::Status status = ToGrpcStatus(MakeError(Reason::kChildNotFound, "no such child"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "no such child");
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(InfoOf(details).reason(), "CHILD_NOT_FOUND");
}

TEST(Status, CutsALongMessage) {
  const auto message = [](const std::string& text) {
    return ToRpcStatus(MakeError(Reason::kInternal, text)).message();
  };
  const std::string at_limit(kErrorMessageBytesMax, 'x');
  EXPECT_EQ(message(at_limit), at_limit);
  EXPECT_EQ(message(at_limit + 'x'), std::string(kErrorMessageBytesMax - 3, 'x') + "...");
  // A character of two bytes is not cut in two.
  std::string umlauts;
  while (umlauts.size() <= kErrorMessageBytesMax) umlauts += "\xc3\xa4";
  EXPECT_EQ(message(umlauts), umlauts.substr(0, kErrorMessageBytesMax - 4) + "...");
}

TEST(Status, KeepsMetadataWithinItsLimit) {
  ipc::ErrorMetadata metadata;
  for (int i = 0; i < 100; ++i)
    metadata.emplace_back("key" + std::to_string(i), std::string(99, 'v'));
  metadata.emplace_back("a", std::string(10'000, 'v'));
  const google::rpc::Status status =
      ToRpcStatus(MakeError(Reason::kInternal, std::string(10'000, '\n'), metadata));
  size_t bytes = 0;
  const google::rpc::ErrorInfo info = InfoOf(status);
  for (const auto& [key, value] : info.metadata()) bytes += key.size() + value.size();
  EXPECT_LE(bytes, kErrorMetadataBytesMax);
  // As headers: the details in base64, the message with every byte escaped.
  EXPECT_LT(status.ByteSizeLong() * 4 / 3 + status.message().size() * 3, 8u << 10);
}

TEST(Status, ReplacesWhatIsNotUtf8) {
  const auto message = [](const std::string& text) {
    return ToRpcStatus(MakeError(Reason::kInternal, text)).message();
  };
  EXPECT_EQ(message("a\xff"
                    "b"),
            "a?b");
  EXPECT_EQ(message("\xc3"), "?");
  EXPECT_EQ(message("\xc0\x80"), "??");            // overlong
  EXPECT_EQ(message("\xed\xa0\x80"), "???");       // a surrogate
  EXPECT_EQ(message("\xf4\x90\x80\x80"), "????");  // beyond Unicode
  EXPECT_EQ(message("\xe2\x82"), "??");            // cut
  EXPECT_EQ(message("\xe2\x82\xac\xf0\x9f\x8c\x8d"), "\xe2\x82\xac\xf0\x9f\x8c\x8d");
}

}  // namespace
}  // namespace deka::server
