// Excerpts of search results are taken from the element whose role is "main". The theme gives it to the whole window,
// with its buttons and the page's contents; what a reader looks for is in the article, outside of drawings
// and hidden code.
(() => {
  "use strict";

  if (typeof Search === "undefined") return; // not the page of the search
  const textOfMain = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    const article = page.querySelector("article.bd-article");
    if (article) {
      page.querySelectorAll('[role="main"]').forEach((main) => main.removeAttribute("role"));
      article.setAttribute("role", "main");
      article.querySelectorAll("svg, details.hide").forEach((element) => element.remove());
    }
    return textOfMain(page.documentElement.outerHTML, anchor);
  };
})();
