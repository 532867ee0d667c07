package job

import "time"

var start = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
