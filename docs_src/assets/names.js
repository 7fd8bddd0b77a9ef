// What Material leaves out: a name of the search for screen readers, and wide tables that the keyboard can scroll.
document$.subscribe(({body}) => {
  body.querySelector(".md-search")?.setAttribute("aria-label", "Search")
  for (const e of body.querySelectorAll(".md-typeset__scrollwrap, .output"))
    if (e.scrollWidth > e.clientWidth) e.tabIndex = 0
})
