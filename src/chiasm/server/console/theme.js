// A classic script, run before the first paint, so that a remembered theme never flashes.
// The system's preference rules until a person chooses otherwise; see components/theme-toggle.js.
try {
  const theme = localStorage.getItem("chiasm.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage can be forbidden; then the system's preference rules.
}
