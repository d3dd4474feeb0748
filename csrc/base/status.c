/* Status details, kept per thread. See status.h. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

enum { DETAIL_SIZE = 1024 };

static _Thread_local char detail[DETAIL_SIZE];

dice_status dice_fail(dice_status code, const char *format, ...)
{
    char text[DETAIL_SIZE]; /* not straight into the detail: the arguments may point into it */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    dice_status_set_detail(text);
    return code;
}

const char *dice_status_detail(void)
{
    return detail;
}

void dice_status_set_detail(const char *text)
{
    if (text != detail) {
        snprintf(detail, sizeof detail, "%s", text);
    }
}
