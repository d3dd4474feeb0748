/* Status codes: every fallible function of the core returns one.
 *
 * DICE_OK is 0. The function that finds a failure calls dice_fail() once, with the detail for the user; its
 * callers pass the code up unchanged. The detail is kept per thread until the next dice_fail() on that
 * thread. */
#ifndef DICE_BASE_STATUS_H
#define DICE_BASE_STATUS_H

typedef enum dice_status {
    DICE_OK = 0,
    DICE_E_MEMORY,  /* allocation failed            -> MemoryError */
    DICE_E_INPUT,   /* bad shape, value, name, NaN  -> dice.InputError */
    DICE_E_DEVICE,  /* no device, or it failed      -> dice.DeviceError */
    DICE_E_INTERNAL /* a fault of dice itself       -> RuntimeError */
} dice_status;

#if defined(__GNUC__)
#define DICE_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define DICE_PRINTF(fmt, args)
#endif

/* Records the detail, formatted as by printf, for this thread and returns `code`. */
dice_status dice_fail(dice_status code, const char *format, ...) DICE_PRINTF(2, 3);

/* The detail recorded by this thread's last dice_fail(); never NULL. */
const char *dice_status_detail(void);

/* Takes over a detail recorded on another thread (used by the thread pool). */
void dice_status_set_detail(const char *detail);

#endif
