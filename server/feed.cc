#include "server/feed.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace deka::server {

namespace {

// A slice that keeps the owner of its bytes alive.
grpc::Slice ToSlice(const agent::Response::Piece& piece) {
  using Owner = std::shared_ptr<const void>;
  return grpc::Slice(
      const_cast<char*>(piece.shared), piece.bytes,
      [](void* owner) { delete static_cast<Owner*>(owner); }, new Owner(piece.owner));
}

}  // namespace

Feed::Feed(Call& call, std::unique_ptr<agent::Observation> observation)
    : remote_(call.remote()), observation_(std::move(observation)) {}

CallClock::time_point Feed::time() const {
  return ended_ ? Call::kNever : std::min(observation_->time(), heartbeat_at_);
}

bool Feed::Take(agent::Response& response) {
  const CallClock::time_point now = CallClock::now();
  if (now >= observation_->time()) *news_ = true;
  if (*news_) {
    switch (observation_->TakeNext(response)) {
      case agent::Observation::Next::kResponse:
        heartbeat_at_ = now + observation_->heartbeat_interval();
        return true;
      case agent::Observation::Next::kEnd:
        ended_ = true;
        status_ = observation_->status();
        return false;
      case agent::Observation::Next::kBusy:
        *news_ = false;
        remote_.PostBehind([news = news_] { *news = true; });
        break;
      case agent::Observation::Next::kWait:
        *news_ = false;
        observation_->OnReady(
            [remote = remote_, news = news_] { remote.Post([news] { *news = true; }); });
        break;
    }
  }
  if (now < heartbeat_at_) return false;
  heartbeat_at_ = now + observation_->heartbeat_interval();
  observation_->TakeHeartbeat(response);
  return true;
}

void Feed::End(bridge::v1::Fin::Reason reason) {
  observation_->End(reason);
  *news_ = true;
}

grpc::ByteBuffer ToObserveResponse(agent::Response& response) {
  const grpc::Slice own(response.own());
  std::vector<grpc::Slice> slices;
  slices.reserve(response.pieces().size());
  for (const agent::Response::Piece& piece : response.pieces()) {
    slices.push_back(piece.owner == nullptr ? own.sub(piece.begin, piece.begin + piece.bytes)
                                            : ToSlice(piece));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer ToAttachResponse(agent::Response& response) {
  // Field 1, `observed`: its length, then its bytes as they are.
  char head[1 + 10] = {bridge::v1::AttachResponse::kObservedFieldNumber << 3 | 2};
  size_t size = 1;
  for (uint64_t left = response.bytes();; left >>= 7) {
    head[size++] = static_cast<char>((left & 0x7F) | (left > 0x7F ? 0x80 : 0));
    if (left <= 0x7F) break;
  }
  response.Prepend({head, size});
  return ToObserveResponse(response);
}

}  // namespace deka::server
