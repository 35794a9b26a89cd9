// Ways in which slots may come to threads: stand-ins for torch_parallel_for, with its signature.
#pragma once

#include <cstdint>

#include "threads.h"

namespace driver {

struct Team {
    const char* name;
    unrolled::ParallelFor run;
};

// Among them: fewer threads than slots, one thread for all, one that comes late, and a refusal.
extern const Team kTeams[7];

// Exits at once: for where nobody may ask for threads.
int32_t forbidden_team(int64_t begin, int64_t end, int64_t grain, unrolled::RangeFunction function, void* context);

// From here on, until it ends, threads come from this team.
class InTeam {
   public:
    explicit InTeam(unrolled::ParallelFor run);
    ~InTeam();
    InTeam(const InTeam&) = delete;
    InTeam& operator=(const InTeam&) = delete;
};

}  // namespace driver
