/* Whether tiles may be used: what the processor says, and what Linux grants. */
#define _GNU_SOURCE
#include "amx.h"

#ifdef HAS_AMX
#include <cpuid.h>
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tiles.h"

#define LEAF_7_BF16 (1u << 22)
#define LEAF_7_TILES (1u << 24)
#define LEAF_7_BYTES (1u << 25)
#define LEAF_1_OSXSAVE (1u << 27)
#define TILES_LEAF 0x1d
/* Of what a system keeps for a thread: configuration and contents. */
#define KEPT_TILES (3u << 17)
#define TILE_CONTENTS 18
#define ARCH_REQ_XCOMP_PERM 0x1023

int processor_has_tiles(void) {
    const unsigned wanted = LEAF_7_BF16 | LEAF_7_TILES | LEAF_7_BYTES;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & wanted) != wanted) return 0;
    /* The first palette: bytes of a row and how many tiles, then how many rows. */
    if (!__get_cpuid_count(TILES_LEAF, 1, &eax, &ebx, &ecx, &edx)) return 0;
    return (ebx & 0xffff) >= TILE_ROW_BYTES && ebx >> 16 >= 8 && (ecx & 0xffff) >= TILE_ROWS;
}

int ask_for_tiles(void) {
    unsigned eax, ebx, ecx = 0, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & LEAF_1_OSXSAVE)) return ENOTSUP;
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    if ((eax & KEPT_TILES) != KEPT_TILES) return ENOTSUP;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_CONTENTS) == 0 ? 0 : errno;
}
#endif
