// Shows what happens to children as a conversation, one line an event:
//
//   #8   0.052 s  visitor -> worker   {"ping":1}
//   #9   0.053 s  worker -> visitor   {"pong":1}
//
// Thread: one at a time.
#ifndef SDK_EXAMPLES_DEMO_TRANSCRIPT_H_
#define SDK_EXAMPLES_DEMO_TRANSCRIPT_H_

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

#include "sdk/cpp/client.h"

namespace deka::examples {

class Transcript {
 public:
  // `names`: what to call each child, by its id. Coloured as dekactl's output is.
  Transcript(std::FILE* out, std::map<std::string, std::string> names);

  void Show(const v1::Event& event);

 private:
  std::FILE* const out_;
  const bool coloured_;
  const std::map<std::string, std::string> names_;
  int64_t start_us_ = 0;  // time of the first event
};

}  // namespace deka::examples

#endif  // SDK_EXAMPLES_DEMO_TRANSCRIPT_H_
