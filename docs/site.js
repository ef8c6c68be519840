// Parts that the theme makes while it runs: what scrolls can be reached by keys, and each copy button says which block it copies.
function mend() {
  document.querySelectorAll(".md-typeset__scrollwrap, pre > code, .md-typeset pre").forEach(e => {
    if (e.scrollWidth > e.clientWidth && !e.hasAttribute("tabindex")) e.tabIndex = 0
  })
  document.querySelectorAll(".md-code__nav").forEach((e, i) => e.setAttribute("aria-label", "code block " + (i + 1)))
}
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true })
addEventListener("resize", mend)
mend()
