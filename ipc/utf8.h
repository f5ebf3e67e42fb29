// What UTF-8 is, and text from outside made to be it.
//
// Well-formed as Unicode defines it: no overlong forms, no surrogates, nothing past U+10FFFF.
#ifndef IPC_UTF8_H_
#define IPC_UTF8_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace deka::ipc {

// Bytes of the character that `text` begins with; 0 if it begins with none.
size_t Utf8CharacterSize(std::string_view text);

// Whether a terminal or a reader of lines obeys `character` instead of showing it: C0, DEL and C1,
// the line and paragraph separators, and what reorders the text around it (the bidirectional
// embeddings, overrides and isolates).
bool IsControl(std::string_view character);

// The offset of the first byte of `text` that is not UTF-8.
std::optional<size_t> FirstBadByte(std::string_view text);

inline bool IsUtf8(std::string_view text) { return !FirstBadByte(text); }

// `bytes` with U+FFFD for each byte that is part of no character, and at most `bytes_max` bytes of
// the result, cut between two characters.
std::string ToUtf8(std::string_view bytes, size_t bytes_max);

// The longest beginning of `text` of at most `bytes_max` bytes that ends between two characters.
// Bytes that are no UTF-8 count as characters of their own.
std::string_view Utf8Prefix(std::string_view text, size_t bytes_max);

}  // namespace deka::ipc

#endif  // IPC_UTF8_H_
