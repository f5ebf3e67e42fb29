// Events for programs: one JSON object a line, in protobuf's JSON mapping.
//
// A message is a JSON value under "message", byte for byte but for line breaks between its tokens.
// A line of output is the string under "text", or under "raw", in base64, if it is no UTF-8.
//
// One that was cut has none of these, so that nothing takes a part for the whole, but
// "payloadCut":{"text":"...","sizeBytes":"13000"}: its beginning as a string ("raw" here, too, if
// it is no UTF-8), and how long it was.
#ifndef SDK_DEKACTL_EVENT_JSON_H_
#define SDK_DEKACTL_EVENT_JSON_H_

#include <string>

#include "deka/bridge/v1/bridge_service.pb.h"
#include "google/protobuf/message.h"

namespace deka::dekactl {

// Each without a line break at its end.
std::string EventJson(const bridge::v1::Event& event);
// {"gap":{...},"cursor":"AGENT/EPOCH/SEQUENCE"}
std::string GapJson(const bridge::v1::Gap& gap, const bridge::v1::Cursor& after);
std::string ToJson(const google::protobuf::Message& message);

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_EVENT_JSON_H_
