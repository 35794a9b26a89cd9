// Mistakes of a caller's that the sanitizers must notice: who never sees one reported doesn't know whether they look.
#pragma once

namespace driver {

// False for a name that is none of "overrun", "masked-overrun", "overflow" and "race".
bool make_mistake(const char* name);

}  // namespace driver
