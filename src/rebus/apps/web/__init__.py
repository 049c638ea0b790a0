"""`rebus web`: a page on which one talks with models in words and pictures, and looks into their tokens.

    models       what is offered, loaded once           session, transcript   a visitor's conversation, and its HTML
    chat_tab     talking                                inspector_tab         looking: codes_panel, patches_panel,
    page         both, and what they look like                                views_panel, compare_panel

Only the last two lines need Gradio.
"""
