() => {
  // What is folded opens; links to other pages become links within the one, those to files, which a PDF has not, none.
  for (const folded of document.querySelectorAll("details.hide, details.cs-computed")) folded.open = true;
  for (const link of document.querySelectorAll("a[download]")) link.removeAttribute("href");
  for (const link of document.querySelectorAll('a[href*=".html#"]')) link.href = "#" + link.href.split("#")[1];
}
